"""Candidates: the traces by which a plan is judged on a device."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dsplan.kernels import kernels_of
from dsplan.verdict.judge import Candidates
from dsplan.walk import capacity_of

if TYPE_CHECKING:
    from dsplan.hardware import Accelerator
    from dsplan.model import ModelShape
    from dsplan.plan import Plan
    from dsplan.verdict.operations import Trace


def candidates(
    model: ModelShape, plan: Plan, world_size: int, accelerator: Accelerator | None, allocator: str = ""
) -> Candidates:
    """The ranks of ``plan`` that can be the worst on ``accelerator``, traced when they are asked for.

    Args:
        allocator: text of PYTORCH_CUDA_ALLOC_CONF.

    Raises:
        InputError: the allocator's settings are not those of torch, or not replayed.
    """
    from dsplan.allocator import parse_settings
    from dsplan.engine import candidate_ranks
    from dsplan.engine.trained import trained_part

    kernels = kernels_of(accelerator)
    capacity = capacity_of(accelerator, world_size)

    def make(rank: int, skipped: int) -> Trace:
        from dsplan.verdict.trace import trace

        return trace(model, plan, world_size, kernels, rank=rank, capacity_bytes=capacity, skipped=skipped)

    skips = plan.workload.precision == "fp16" and plan.zero.stage > 0
    ranks = candidate_ranks(trained_part(model), plan, world_size)
    return Candidates(ranks, make, parse_settings(allocator), skips=skips)
