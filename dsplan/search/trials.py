"""Which configurations are timed on a real device, and what that says of the recommendation: the regret."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dsplan.hardware import Accelerator
from dsplan.plan import Plan
from dsplan.prediction import predict
from dsplan.search.result import Candidate, SearchResult
from dsplan.timing.step_time import StepTime
from dsplan.timing.trials import Outcome

RECOMMENDED, RUNNER_UP, BASELINE = "recommended", "runner-up", "baseline"
#: What one would try without a planner: each stage, with the largest micro batch that is worth it.
_BASELINES = ("zero0", "zero1", "zero2", "zero3")


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A configuration that is timed, and what is predicted of it.

    Attributes:
        role: the search's winner, one of the next best strategies, or a stage to compare with.
        time: predicted.
        peak_bytes: predicted peak of allocated memory on the worst rank.
    """

    role: str
    plan: Plan
    time: StepTime
    peak_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """A trial and what it came to; tokens a second of all ranks, None when it failed."""

    trial: Trial
    outcome: Outcome
    tokens_per_s: float | None

    @property
    def time_error(self) -> float | None:
        """Predicted by measured seconds, less 1."""
        return None if self.outcome.seconds is None else self.trial.time.seconds / self.outcome.seconds - 1

    @property
    def memory_error(self) -> float | None:
        """Predicted by measured peak of allocated memory, less 1."""
        peak = self.outcome.peak_allocated_bytes
        return None if not peak else self.trial.peak_bytes / peak - 1


def trials(result: SearchResult, top: int) -> tuple[Trial, ...]:
    """The ``top`` best strategies of the search, best first, each with its best micro batch; then the baselines."""
    best = list(result.ranked[:top])
    taken = {candidate.plan.name for candidate in best}
    others = [one for one in result.ranked if one.plan.name in _BASELINES and one.plan.name not in taken]
    roles = [RECOMMENDED, *[RUNNER_UP] * (len(best) - 1)][: len(best)] + [BASELINE] * len(others)
    return tuple(_trial(result, one, role) for one, role in zip([*best, *others], roles, strict=True))


def _trial(result: SearchResult, candidate: Candidate, role: str) -> Trial:
    device: Accelerator | None = candidate.cluster.accelerator
    steps = predict(result.model, candidate.plan, device, candidate.cluster.world_size).steps
    return Trial(role=role, plan=candidate.plan, time=candidate.time, peak_bytes=max(step.peak_bytes for step in steps))


def tried(trial: Trial, outcome: Outcome) -> Tried:
    """``trial`` with what it came to."""
    tokens = trial.time.tokens_per_s * trial.time.seconds
    return Tried(
        trial=trial, outcome=outcome, tokens_per_s=None if outcome.seconds is None else tokens / outcome.seconds
    )


def reached(found: Sequence[Tried]) -> float | None:
    """Measured speed of the recommended configuration by that of the best measured, 0 to 1.

    The regret is what is missing to 1. None when the recommended one did not run.
    """
    recommended = next((one for one in found if one.trial.role == RECOMMENDED), None)
    if recommended is None or recommended.tokens_per_s is None:
        return None
    return recommended.tokens_per_s / max(one.tokens_per_s for one in found if one.tokens_per_s is not None)
