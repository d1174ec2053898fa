"""Ranks that begin as the first one did come to what each comes to alone; at stages 1 and 2."""

from __future__ import annotations

import pytest

from dsplan.engine import candidate_ranks
from dsplan.engine.outliner import Outliner
from dsplan.kernels import Kernels
from dsplan.ledger import worst_step
from dsplan.model import ModelShape
from dsplan.plan import Plan
from dsplan.walk import walk
from dsplan.workload import Workload
from dsplan.zero import OffloadOptimizer, ZeroConfig

MODEL = ModelShape(num_layers=12, hidden_size=96, num_attention_heads=4, vocab_size=700, max_position_embeddings=64)


@pytest.mark.parametrize("micro_batches", [1, 3])
@pytest.mark.parametrize("device", ["none", "cpu"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("stage", [1, 2])
def test_the_worst_of_all_is_the_worst_of_each_alone(
    stage: int, precision: str, device: str, micro_batches: int
) -> None:
    """Of every step and phase level, peak and moment, and the host's; each rank alone begins by itself."""
    zero = ZeroConfig(stage=stage, reduce_bucket_size=50_000, offload_optimizer=OffloadOptimizer(device=device))
    workload = Workload(sequence_length=8, precision=precision, gradient_accumulation_steps=micro_batches)
    plan = Plan(name="a plan", zero=zero, workload=workload)
    ranks = candidate_ranks(MODEL, plan, 5)
    assert len(ranks) > 1
    together = walk(MODEL, plan, 5, Kernels())
    alone = [walk(MODEL, plan, 5, Kernels(), rank=rank) for rank in ranks]
    assert together.steps == tuple(worst_step(steps) for steps in zip(*[one.steps for one in alone], strict=True))
    assert together.pinned_bytes == max(one.pinned_bytes for one in alone)
    assert together.pageable_bytes == max(one.pageable_bytes for one in alone)
    assert together.host_bytes == max(one.host_bytes for one in alone)


@pytest.mark.parametrize(
    ("stage", "world_size", "ranks", "walked"),
    [
        (2, 5, (4, 2, 0), (4, 2)),  # the last has its partition first, and more gradients than the first one
        (2, 6, (5, 4, 0), (5, 4, 0)),  # fewer than the first one
        (1, 5, (4, 2, 0), (4, 2, 0)),  # the first has its partition first
    ],
)
def test_ranks_that_another_outweighs_are_not_walked(
    stage: int, world_size: int, ranks: tuple[int, ...], walked: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = Plan(name="a plan", zero=ZeroConfig(stage=stage, reduce_bucket_size=50_001), workload=Workload())
    assert candidate_ranks(MODEL, plan, world_size) == ranks
    alone = [walk(MODEL, plan, world_size, Kernels(), rank=rank) for rank in ranks]
    trained: list[int] = []
    train = Outliner.train

    def noted(self: Outliner) -> None:
        trained.append(self.run.rank)
        train(self)

    monkeypatch.setattr(Outliner, "train", noted)
    together = walk(MODEL, plan, world_size, Kernels())
    assert tuple(trained) == walked
    assert together.steps == tuple(worst_step(steps) for steps in zip(*[one.steps for one in alone], strict=True))
