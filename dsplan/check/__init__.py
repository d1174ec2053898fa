"""Checking configurations: every finding with its file, line, column, rule and what to write instead.

What a rule says of DeepSpeed is true of :data:`dsplan.dsconfig.DEEPSPEED_VERSION`; its docstring names the
file and function that make it true. DeepSpeed itself is never imported.
"""
