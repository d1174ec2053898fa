"""Stage 3 of a model of which some parameters are not trained.

All are partitioned, and gathered by the coordinator. What is not trained has no gradient, no master and no states, and
its partition stays where zero.Init has put it: only those of the trained are flattened. Adapters come after the model
is built, outside zero.Init: whole, until deepspeed.initialize partitions them.

Source: DeepSpeed 0.19.8 runtime/zero/stage3.py (_get_trainable_parameter_groups, create_reduce_and_remove_grad_hooks)
and runtime/zero/parameter_offload.py (_convert_to_zero_parameters).
"""

from __future__ import annotations

from dataclasses import replace

from dsplan import buffers, states
from dsplan.engine.base import Run
from dsplan.engine.gathering import GatherStep, gather_steps
from dsplan.engine.stage3_leaves import Stage3Leaves
from dsplan.engine.trained import trained_part
from dsplan.families.adapters import is_adapter
from dsplan.model import ModelShape


class Stage3Frozen(Stage3Leaves):
    """The engine's parameters are those that are trained; the coordinator's are all."""

    def __init__(self, run: Run) -> None:
        self.whole = run.model
        super().__init__(replace(run, model=trained_part(run.model)))
        names = {parameter.name: index for index, parameter in enumerate(self.whole.parameters)}
        #: The index among all parameters, of each that is trained.
        self._in_whole = [names[parameter.name] for parameter in self.run.model.parameters]

    def _gather_steps(self) -> tuple[GatherStep, ...]:
        run = self.run
        return gather_steps(self.whole, self.zero, run.world_size, run.plan.workload, run.kernels)

    @property
    def _gathered_model(self) -> ModelShape:
        return self.whole

    def _build_under_zero_init(self) -> None:
        self._take_swap_buffers()
        self._build_modules(tuple([each for each in self.whole.parameters if not is_adapter(each)]))
        self._tie()
        adapters = [parameter.numel for parameter in self.whole.parameters if is_adapter(parameter)]
        for numel in adapters:  # made on the host, in fp32
            self.ledger.temporary(states.HOST_TRANSIENT, 4 * numel)
            self.ledger.alloc(buffers.GATHERED, self.e * numel)
        for numel in adapters:
            self._partition([numel])

    def _forget_weights(self, index: int) -> None:
        super()._forget_weights(self._in_whole[index])
