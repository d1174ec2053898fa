"""How long planning takes: reported, not judged (pytest tests/bench)."""

from __future__ import annotations

from typing import Any

import pytest

from dsplan.catalogue import accelerator
from dsplan.engine import coordinator, gathering
from dsplan.estimate import estimate
from dsplan.hardware import Cluster
from dsplan.kernels import Kernels
from dsplan.model import ModelShape
from dsplan.strategies import find_plan, standard_plans
from dsplan.walk import walk
from dsplan.workload import Workload

DEEP = ModelShape(num_layers=96, hidden_size=12288, num_attention_heads=96)  # GPT-3's
LARGE = ModelShape(num_layers=56, hidden_size=8192, num_attention_heads=16, vocab_size=65, max_position_embeddings=128)


def forget() -> None:
    """Stage 3's gathering is computed once per model; a benchmark wants the first time."""
    gathering._gather_steps.cache_clear()
    coordinator.persistent_parameters.cache_clear()


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_one_plan_of_96_layers(benchmark: Any, stage: int) -> None:
    plan = find_plan(standard_plans(DEEP, Workload()), f"zero{stage}")
    result = benchmark.pedantic(lambda: walk(DEEP, plan, 64, Kernels()), setup=forget, rounds=5)
    assert result.steps


@pytest.mark.parametrize("card", [None, "h200"])
def test_the_whole_estimate_of_45b(benchmark: Any, card: str | None) -> None:
    cluster = Cluster(accelerator=None if card is None else accelerator(card), gpus_per_node=8)
    plans = standard_plans(LARGE, Workload(sequence_length=128))
    result = benchmark.pedantic(lambda: estimate(LARGE, plans, cluster), setup=forget, rounds=3)
    assert len(result.plans) == 16
