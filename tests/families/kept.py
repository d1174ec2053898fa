"""The dry runs of the grid as tests/data/decoders.json keeps them: peaks, and what made each."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dsplan.files import write_text
from tests.families.compared import Peaks, rank_of
from tests.families.grid import Setting
from tests.families.made_by import is_older

DATA = Path(__file__).parents[1] / "data" / "decoders.json"
_ABOUT = (
    "Dry runs of tests/families/grid.py: bytes allocated at most in init and in forward, backward and step of each of "
    "three steps; pinned and pageable host memory. Written by python -m tests.families.report, where made_by tells "
    "which are of other code or versions than are here."
)


@dataclass(frozen=True, kw_only=True)
class Kept:
    """One dry run: what it found, what made it, and on which day."""

    peaks: Peaks
    made_by: Mapping[str, str]
    date: str


def told(setting: Setting) -> dict[str, Any]:
    """What the dry run of a setting is told."""
    return asdict(setting.spec(rank_of(setting)))


def older(kept: Mapping[str, Kept], settings: Iterable[Setting]) -> list[str]:
    """The names of the settings whose dry runs are missing, or were made by other code or versions than are here."""
    return [
        setting.name
        for setting in settings
        if setting.name not in kept or is_older(kept[setting.name].made_by, told(setting))
    ]


def read_kept(path: Path = DATA) -> dict[str, Kept]:
    """By name of a setting."""
    runs = json.loads(path.read_text(encoding="utf-8"))["runs"]
    return {name: _kept(run) for name, run in runs.items()}


def _kept(run: Mapping[str, Any]) -> Kept:
    init, *each = run["peaks"]
    pinned, pageable = run["host"]
    peaks = Peaks(init=init, each=tuple(each), pinned=pinned, pageable=pageable)
    return Kept(peaks=peaks, made_by=run["made_by"], date=run["date"])


def write_kept(kept: Mapping[str, Kept], path: Path = DATA) -> None:
    """The file anew, whole or not at all, a line for each dry run."""
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(_run(each))}" for name, each in kept.items())
    write_text(path, f'{{\n "about": {json.dumps(_ABOUT)},\n "runs": {{\n{lines}\n }}\n}}\n', force=True)


def _run(kept: Kept) -> dict[str, Any]:
    peaks = kept.peaks
    return {
        "peaks": [peaks.init, *peaks.each],
        "host": [peaks.pinned, peaks.pageable],
        "date": kept.date,
        "made_by": dict(kept.made_by),
    }
