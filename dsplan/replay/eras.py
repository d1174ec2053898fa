"""Eras: a published run walked by today's rules, then by those of its day, one rule after the other.

A peak is a maximum over moments, so what one rule is worth depends on those before it; in the order given they add up
to the whole difference, byte for byte, because each is the difference of two walks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dsplan.engine import Engine, Run, engine_for
from dsplan.kernels import kernels_of
from dsplan.replay import deepspeed_0_3_13, torch_1_8
from dsplan.replay.cases import Case
from dsplan.replay.walking import Build, highest_step, walk_as

STAGE_THAT_GATHERS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One rule that has changed since: its name, what it was then, and the bytes that it moved the peak by."""

    name: str
    was: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """A run's peak over the steps by today's rules, the changes, and by the rules of its day.

    Attributes:
        era: whose rules those are; empty when none were needed or are known.
        moment: of the peak by them.
    """

    today_bytes: int
    changes: tuple[Change, ...] = ()
    era: str = ""
    moment: str = ""

    @property
    def then_bytes(self) -> int:
        """The peak by the rules of its time, in bytes."""
        return self.today_bytes + sum(change.size_bytes for change in self.changes)


def account(case: Case) -> Account:
    """Walk a case today and then.

    Raises:
        ValueError: the model has no formulas.
    """
    names = _rules(case)
    today = _peak(case, None)
    if not names:
        return Account(today_bytes=today[0])
    changes = []
    before = today
    switched: frozenset[str] = frozenset()
    for name, was in names.items():
        switched |= {name}
        after = _peak(case, switched)
        changes.append(Change(name=name, was=was, size_bytes=after[0] - before[0]))
        before = after
    return Account(today_bytes=today[0], changes=tuple(changes), era=era_of(case), moment=before[1])


def era_of(case: Case) -> str:
    """Whose rules a run of the case's day followed; empty when nothing is known to have changed."""
    if not _rules(case):
        return ""
    return "torch 1.8" if case.zero is None else "DeepSpeed 0.3.13"


def engine_of_its_day(case: Case) -> Build:
    """The engine by all rules that are known to have changed since; today's where none are."""
    names = frozenset(_rules(case))
    return _by(names) if names else engine_for


def _rules(case: Case) -> Mapping[str, str]:
    """What is known to have changed since the setup's software; of the runs of 2021 only."""
    if "0.3.1" not in case.setup.software:
        return {}
    if case.zero is None:
        return torch_1_8.RULES
    return deepspeed_0_3_13.RULES if case.zero.stage == STAGE_THAT_GATHERS else {}


def _peak(case: Case, rules: frozenset[str] | None) -> tuple[int, str]:
    """Peak over the steps in bytes, and where; by today's rules or with some of the old ones."""
    shape = case.model.shape
    if shape is None:
        raise ValueError(f"{case.model.name}: dsplan has no formulas for it")

    kernels = kernels_of(case.cluster.accelerator)
    build = engine_for if rules is None else _by(rules)
    step = highest_step(walk_as(shape, case.plan, case.world_size, kernels, build))
    return step.peak_bytes, f"{step.peak_phase}, {step.phases[step.peak_phase].peak_moment}"


def _by(rules: frozenset[str]) -> Build:
    def old(run: Run) -> Engine:
        return torch_1_8.OldDdp(run, rules) if run.plan.ddp else deepspeed_0_3_13.OldStage3(run, rules)

    return old
