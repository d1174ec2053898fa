"""Phases: Gaudi's published tables beside what dsplan says of the same run, without a verdict.

In lazy mode an HPU runs the graph only once it is marked complete, after the backward pass, so that "after forward"
shows no activations; and tensors live until then that CUDA frees at once. The readings are of the driver's allocator,
each the highest since the one before it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsplan.kernels import kernels_of
from dsplan.ledger import PHASES, StepMemory
from dsplan.replay.cases import Case, cases
from dsplan.units import MIB
from dsplan.walk import STEADY_STATE, walk

PUBLISHED, FORMULA, DRY_RUN = "published", "formula", "dry run"
FIRST, STEADY = "first", "last"
#: Columns of a published row: before and after forward, before and after backward, before and after the step, highest.
_BEFORE, _AFTER_FORWARD, _AFTER_BACKWARD, _AFTER_STEP = 0, 1, 3, 5
STEPS = 4
TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseLine:
    """One step of one source, in bytes: the levels at the borders of its phases, and the highest within it."""

    source: str
    step: str
    before_bytes: int
    forward_bytes: int
    backward_bytes: int
    step_bytes: int
    highest_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseTable:
    """A published table and what stands beside it."""

    case: str
    remark: str
    lines: tuple[PhaseLine, ...]


def phase_tables(*, dry: bool = False, on_progress: Callable[[], None] = lambda: None) -> tuple[PhaseTable, ...]:
    """Every published table with the formula's phases; with ``dry`` also a dry run's (seconds each).

    Raises:
        MissingExtraError, InputError, RunError: a dry run cannot be made.
    """
    found = []
    for one in cases():
        if one.judge == "phases":
            lines = [*_published(one), *_formula(one), *(_dry_run(one) if dry else ())]
            found.append(PhaseTable(case=one.id, remark=one.remark, lines=tuple(lines)))
            on_progress()
    return tuple(found)


def _published(one: Case) -> Iterable[PhaseLine]:
    for name, row in ((FIRST, one.published.table_mib[0]), (STEADY, one.published.table_mib[-1])):
        yield PhaseLine(
            source=PUBLISHED,
            step=name,
            before_bytes=MIB * row[_BEFORE],
            forward_bytes=MIB * row[_AFTER_FORWARD],
            backward_bytes=MIB * row[_AFTER_BACKWARD],
            step_bytes=MIB * row[_AFTER_STEP],
            highest_bytes=MIB * max(row),
        )


def _formula(one: Case) -> Iterable[PhaseLine]:
    assert one.model.shape is not None
    walked = walk(one.model.shape, one.plan, one.world_size, kernels_of(one.cluster.accelerator), rank=0)
    before = walked.steps[0].phases[PHASES[0]].level_bytes
    lines: list[PhaseLine] = []
    for index, step in enumerate(walked.steps[1:]):
        if index == 0 or step.name == STEADY_STATE:
            lines.append(_line(FORMULA, FIRST if index == 0 else STEADY, before, step))
        before = step.phases[PHASES[3]].level_bytes
    return lines


def _line(source: str, name: str, before: int, step: StepMemory) -> PhaseLine:
    forward, backward, update = (step.phases[phase] for phase in PHASES[1:])
    return PhaseLine(
        source=source,
        step=name,
        before_bytes=before,
        forward_bytes=forward.level_bytes,
        backward_bytes=backward.level_bytes,
        step_bytes=update.level_bytes,
        highest_bytes=step.peak_bytes,
    )


def _dry_run(one: Case) -> Iterable[PhaseLine]:
    from dsplan.dsconfig.emit import emit
    from dsplan.verification import Job, NotCovered, verify
    from dsplan.verify_device import dry_run_device

    shape, plan, cluster = one.model.shape, one.plan, one.cluster
    assert shape is not None
    job = Job(
        name=one.id,
        model=shape,
        workload=plan.workload,
        ds_config=emit(plan, shape, cluster),
        device=dry_run_device(cluster.accelerator, "asked for"),
        world_size=one.world_size,
        against=NotCovered(settings=()),
        steps=STEPS,
        rank=0,
    )
    with tempfile.TemporaryDirectory(prefix="dsplan-replay-") as folder:
        measured, _ = verify(job, Path(folder), timeout_s=TIMEOUT_S, tolerance_percent=0.0, on_progress=_ignore)
    (rank,) = measured.ranks
    for name, step in ((FIRST, rank.steps[0]), (STEADY, rank.steps[-1])):
        yield PhaseLine(
            source=DRY_RUN,
            step=name,
            before_bytes=step.phases[PHASES[1]].level_before_bytes,
            forward_bytes=step.phases[PHASES[1]].level_bytes,
            backward_bytes=step.phases[PHASES[2]].level_bytes,
            step_bytes=step.phases[PHASES[3]].level_bytes,
            highest_bytes=step.peak_bytes,
        )


def _ignore(_: dict[str, Any]) -> None:
    """Nobody watches a dry run of a replay: the bar counts tables."""
