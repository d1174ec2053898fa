"""What a check has found, and the rules that can find something."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ERROR = "error"
WARNING = "warning"
NOTE = "note"
#: Least grave first.
SEVERITIES = (NOTE, WARNING, ERROR)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One rule: ``id`` never changes its meaning; ``name`` and ``summary`` say what it is about."""

    id: str
    name: str
    severity: str
    summary: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Edit:
    """A replacement of the characters from ``offset`` to ``end`` that is safe to make."""

    offset: int
    end: int
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One finding, at a place in a file.

    Attributes:
        line: counted from 1, as is ``column``, in characters.
        key: the dotted key; empty where the finding is about the text.
        message: what it means.
        instead: what to write instead; empty where nothing can be said.
        edit: the replacement that ``--fix`` makes; None where a person has to decide.
    """

    path: Path
    line: int
    column: int
    rule: Rule
    severity: str
    key: str
    message: str
    instead: str = ""
    edit: Edit | None = None


def at_least(severity: str, threshold: str) -> bool:
    """Whether ``severity`` is as grave as ``threshold``."""
    return SEVERITIES.index(severity) >= SEVERITIES.index(threshold)
