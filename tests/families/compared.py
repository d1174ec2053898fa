"""Peaks of the formulas beside those of a dry run, phase by phase."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dsplan.catalogue import accelerator
from dsplan.kernels import kernels_of
from dsplan.prediction import predict
from dsplan.walk import worst_rank
from tests.families.grid import RANKS, TARGET, Setting

PHASES = ("forward", "backward", "step")


@dataclass(frozen=True, kw_only=True)
class Peaks:
    """Bytes allocated at most: over all steps, and in each phase of the last, steady one."""

    steps: int
    forward: int
    backward: int
    step: int


def rank_of(setting: Setting) -> int:
    """The rank that is compared: the worst, by the formulas."""
    return worst_rank(setting.model, setting.plan, RANKS, kernels_of(accelerator(TARGET)))


def predicted(setting: Setting) -> Peaks:
    """By the formulas."""
    found = predict(setting.model, setting.plan, accelerator(TARGET), RANKS, rank=rank_of(setting))
    last = found.steps[-1].phases
    return Peaks(
        steps=max(step.peak_bytes for step in found.steps), **{phase: last[phase].peak_bytes for phase in PHASES}
    )


def dry(record: Mapping[str, Any]) -> Peaks:
    """By a dry run's record."""
    peaks = [{phase: step["phases"][phase]["peak_bytes"] for phase in PHASES} for step in record["steps"]]
    return Peaks(steps=max(max(step.values()) for step in peaks), **peaks[-1])


def error_percent(ours: Peaks, theirs: Peaks) -> float:
    """Signed error of the formulas' peak over the steps."""
    return 100 * (ours.steps / theirs.steps - 1)
