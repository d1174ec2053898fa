"""What is timed: one model of 96 layers, its plans, and a planner that has seen neither before."""

from __future__ import annotations

import sys
from functools import _lru_cache_wrapper

from dsplan.model import ModelShape
from dsplan.plan import Plan
from dsplan.strategies import find_plan, standard_plans
from dsplan.workload import Workload

#: As deep as GPT-3 and as wide as gpt2-xl, 3.1B parameters, so that a dry run of every stage fits a device.
DEEP = ModelShape(name="96 layers", num_layers=96, hidden_size=1600, num_attention_heads=25)
STAGES = (0, 1, 2, 3)

_KEPT = ("dsplan.catalogue", "dsplan.schemas")  # files that are read once


def plan_of(stage: int) -> Plan:
    """``zero0`` to ``zero3``, one sample of 1,024 tokens, bf16, AdamW."""
    return find_plan(standard_plans(DEEP, Workload()), f"zero{stage}")


def forget() -> None:
    """Empty every cache of the planner: a benchmark wants the first time."""
    for name, module in list(sys.modules.items()):
        if name.startswith("dsplan.") and name not in _KEPT:
            for found in vars(module).values():
                if isinstance(found, _lru_cache_wrapper):
                    found.cache_clear()
