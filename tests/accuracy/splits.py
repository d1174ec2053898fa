"""The records by what was run: one list of groups, the same for every estimator."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from tests.accuracy.records import Compared
from tests.halves import SEEN, UNSEEN


@dataclass(frozen=True, slots=True)
class Group:
    """Some of the records: ``title`` says what of (``stage``), ``value`` which of it (``2``)."""

    title: str
    value: str
    records: tuple[Compared, ...]

    @property
    def name(self) -> str:
        return self.value if not self.title else f"{self.title}: {self.value}"


def offload_of(found: Compared) -> str:
    zero = found.plan.zero
    kinds = [zero.offload_optimizer.device, zero.offload_param.device]
    names = [
        f"{what} to {kind}" for what, kind in zip(("optimizer", "parameters"), kinds, strict=True) if kind != "none"
    ]
    return " and ".join(names) or "none"


#: Title -> what a record is of it, in the order of the table.
_KINDS: dict[str, Callable[[Compared], str]] = {
    "half": lambda found: found.half,
    "family": lambda found: found.model.model_type,
    "stage": lambda found: str(found.plan.zero.stage),
    "offload": offload_of,
    "precision": lambda found: found.plan.workload.precision,
    "checkpointing": lambda found: found.plan.workload.activation_checkpointing,
    "ranks": lambda found: str(found.world_size),
}


def groups(records: Iterable[Compared]) -> list[Group]:
    """All of them, then by half, family, stage, offload, precision, checkpointing and ranks; only what there is."""
    everything = tuple(records)
    found = [Group("", "all records", everything)] if everything else []
    for title, kind_of in _KINDS.items():
        kinds: dict[str, list[Compared]] = {}
        for record in everything:
            kinds.setdefault(kind_of(record), []).append(record)
        found += [Group(title, kind, tuple(kinds[kind])) for kind in sorted(kinds)]
    return found


def halves(records: Sequence[Compared]) -> dict[str, tuple[Compared, ...]]:
    """:data:`SEEN` and :data:`UNSEEN` -> their records; either may be empty."""
    return {half: tuple(found for found in records if found.half == half) for half in (SEEN, UNSEEN)}
