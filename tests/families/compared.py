"""Peaks of the formulas beside those of a dry run, phase by phase, and what both take of host memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from dsplan.catalogue import accelerator
from dsplan.kernels import kernels_of
from dsplan.ledger import StepMemory
from dsplan.prediction import predict
from dsplan.walk import capacity_of, walk, worst_rank
from tests.families.grid import RANKS, TARGET, Setting

PHASES = ("forward", "backward", "step")
#: How many steps are compared: the first, at stage 3 the second, which prefetches, and one of those that follow.
STEPS = 3


@dataclass(frozen=True, kw_only=True)
class Peaks:
    """What one rank holds at most, in bytes.

    Attributes:
        init: of device memory, while the engine is made; allocated, as torch's allocator counts it.
        each: likewise of every phase of every step, in order.
        pinned, pageable: of host memory, over the whole run.
    """

    init: int
    each: tuple[int, ...]
    pinned: int
    pageable: int

    @property
    def steps(self) -> int:
        """Over all steps."""
        return max(self.each)

    @property
    def forward(self) -> int:
        """In the forward pass of the last step, as the following two of its other phases."""
        return self.each[-3]

    @property
    def backward(self) -> int:
        return self.each[-2]

    @property
    def step(self) -> int:
        return self.each[-1]

    @property
    def named(self) -> dict[str, int]:
        """All peaks of device memory by what they are of: ``init``, ``step 1, forward``, ..."""
        names = (
            f"step {1 + number // len(PHASES)}, {PHASES[number % len(PHASES)]}" for number in range(len(self.each))
        )
        return {"init": self.init, **dict(zip(names, self.each, strict=True))}


def rank_of(setting: Setting) -> int:
    """The rank that is compared: the worst, by the formulas."""
    return worst_rank(setting.model, setting.plan, RANKS, kernels_of(accelerator(TARGET)))


@cache
def predicted(setting: Setting) -> Peaks:
    """By the formulas."""
    target, rank = accelerator(TARGET), rank_of(setting)
    found = predict(setting.model, setting.plan, target, RANKS, rank=rank)
    capacity = capacity_of(target, RANKS)
    walked = walk(setting.model, setting.plan, RANKS, kernels_of(target), rank=rank, capacity_bytes=capacity)
    return Peaks(
        init=found.init.peak_bytes,
        each=tuple(_peaks([found.steps[min(number, len(found.steps) - 1)] for number in range(STEPS)])),
        pinned=walked.pinned_bytes,
        pageable=walked.pageable_bytes,
    )


def _peaks(steps: list[StepMemory]) -> Iterator[int]:
    for step in steps:
        for phase in PHASES:
            yield step.phases[phase].peak_bytes


def dry(record: Mapping[str, Any]) -> Peaks:
    """By a dry run's record."""
    host = record["dry_run"]["host"]
    return Peaks(
        init=record["init"]["peak_bytes"],
        each=tuple(step["phases"][phase]["peak_bytes"] for step in record["steps"] for phase in PHASES),
        pinned=host["pinned_bytes"] + host["locked_bytes"],
        pageable=host["pageable_bytes"],
    )


def error_percent(ours: Peaks, theirs: Peaks) -> float:
    """Signed error of the formulas' peak over the steps."""
    return 100 * (ours.steps / theirs.steps - 1)


def errors_percent(ours: Peaks, theirs: Peaks) -> dict[str, float]:
    """Signed error of the formulas in every phase, by its name."""
    return {name: 100 * (ours.named[name] / peak - 1) for name, peak in theirs.named.items()}
