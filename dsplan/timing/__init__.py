"""How long one step takes: measured rates of a machine, summed over what DeepSpeed's engine does in a step.

:func:`dsplan.timing.step_time.step_time` is the one door. docs/step-time.md explains the model.
"""
