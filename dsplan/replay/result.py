"""The whole replay: every verdict, the phases beside Gaudi's, and how far memory goes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dsplan.replay.cases import cases
from dsplan.replay.headline import TECHNIQUES, Reach, reaches
from dsplan.replay.phases import PhaseTable, phase_tables
from dsplan.replay.verdicts import Row, rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """What ``dsplan replay`` found; ``holds``: no verdict is other than it should be."""

    rows: tuple[Row, ...]
    phases: tuple[PhaseTable, ...]
    reaches: tuple[Reach, ...]

    @property
    def holds(self) -> bool:
        """Whether no verdict failed."""
        return not self.failed

    @property
    def failed(self) -> tuple[Row, ...]:
        """The rows whose verdict is another than it should be."""
        return tuple(row for row in self.rows if row.holds is False)


def replay(*, dry: bool = False, on_progress: Callable[[int, int], None] = lambda _done, _total: None) -> Replay:
    """Judge every published case; ``dry`` adds a dry run to each of Gaudi's phase tables (a quarter of a minute each).

    Raises:
        MissingExtraError, InputError, RunError: a dry run cannot be made.
    """
    total = len(cases()) + len(TECHNIQUES)
    done = 0

    def one_more() -> None:
        nonlocal done
        done += 1
        on_progress(done, total)

    return Replay(
        rows=tuple(rows(one_more)),
        reaches=reaches(one_more),
        phases=phase_tables(dry=dry, on_progress=one_more),
    )
