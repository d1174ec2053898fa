"""What a search found, as types."""

from __future__ import annotations

from dataclasses import dataclass

from dsplan.hardware import Cluster
from dsplan.model import ModelShape
from dsplan.plan import Plan
from dsplan.timing.step_time import StepTime

OBJECTIVES = ("speed", "headroom", "cost")


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A plan that fits, on a cluster, with its time and memory.

    Attributes:
        device_bytes: what the driver shows at least at the peak; None where it was not computed.
        host_bytes: of a node; None likewise.
        headroom_bytes: usable device memory that stays free.
    """

    plan: Plan
    cluster: Cluster
    time: StepTime
    device_bytes: int | None = None
    host_bytes: int | None = None
    headroom_bytes: int | None = None

    @property
    def tokens_per_s(self) -> float:
        return self.time.tokens_per_s

    @property
    def device_seconds_per_token(self) -> float:
        """What a token costs: seconds of one device."""
        return self.cluster.world_size / self.time.tokens_per_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """A strategy that is not recommended, and why: what is short, by how much, when; or how much slower it is.

    ``terms``: (name, bytes) of the largest at the peak, for what does not fit.
    """

    strategy: str
    fits: bool
    why: str
    terms: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class WhatIf:
    """What another machine would allow: its words, and the best there; None when nothing fits there either."""

    change: str
    best: Candidate | None
    gain: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchResult:
    """The search's answer.

    Attributes:
        winner: None when nothing fits.
        runners_up: the best of the other strategies, best first, at most three.
        ranked: the best of every strategy that fits, best first; memory only where it was asked for.
        front: no other candidate is both faster and smaller; smallest first.
        num_candidates: how many were looked at.
    """

    model: ModelShape
    cluster: Cluster
    objective: str
    winner: Candidate | None
    runners_up: tuple[Candidate, ...]
    ranked: tuple[Candidate, ...]
    front: tuple[Candidate, ...]
    rejected: tuple[Rejected, ...]
    what_if: tuple[WhatIf, ...]
    num_candidates: int
    profile: str
    measured: bool
