"""Traces of many plans: none breaks off, and all peak where the walk does."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from dsplan.engine import candidate_ranks
from dsplan.strategies import standard_plans
from dsplan.verdict.late import late_reserved_bytes
from dsplan.verdict.operations import RELEASE
from dsplan.verdict.trace import trace
from dsplan.walk import walk
from dsplan.workload import Workload
from tests.verdict.plans import KERNELS, MODEL

MODELS = (MODEL, replace(MODEL, tie_word_embeddings=True), replace(MODEL, attention="sdpa", dropout=0.0))


@pytest.mark.parametrize("seed", range(60))
def test_a_plan_of_any_kind(seed: int) -> None:
    draw = random.Random(seed)
    model, ranks = draw.choice(MODELS), draw.choice((1, 2, 4))
    workload = Workload(
        micro_batch_size=draw.choice((1, 2)),
        sequence_length=64,
        gradient_accumulation_steps=draw.choice((1, 1, 2, 4)),
        precision=draw.choice(("bf16", "fp16", "fp32")),
        optimizer=draw.choice(("adamw", "adamw", "sgd", "adagrad", "lion")),
    )
    plan = draw.choice(standard_plans(model, workload, checkpointing_kind="deepspeed", nvme_path="/nvme"))
    zero = replace(plan.zero, overlap_comm=draw.choice((True, False)))
    if zero.stage == 3:
        zero = replace(zero, stage3_prefetch_bucket_size=draw.choice((0, 10**5, 10**7)))
        zero = replace(zero, stage3_param_persistence_threshold=draw.choice((0, 10**4, 10**6)))
    plan = replace(plan, zero=zero)
    rank = draw.choice(candidate_ranks(model, plan, ranks))
    walked = walk(model, plan, ranks, replace(KERNELS, whole_segments=False), rank=rank)
    skipped = 2 if plan.workload.precision == "fp16" and zero.stage > 0 else 0
    found = trace(model, plan, ranks, KERNELS, rank=rank, skipped=skipped)
    level = peak = 0
    for size, other in found.operations:
        level += size if size >= 0 else -found.operations[other][0] if size == RELEASE else 0
        peak = max(peak, level)
    assert peak == pytest.approx(max(step.peak_bytes for step in walked.steps), abs=8192)
    assert all(found.operations[number][0] == RELEASE for number in found.kept)
    assert list(found.waits) == sorted(found.waits)
    assert all(point <= operation for operation, point in found.waits)
    if found.kept:
        assert zero.stage == 3
        assert zero.overlap_comm
        assert late_reserved_bytes(found) >= peak
