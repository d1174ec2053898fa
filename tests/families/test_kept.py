"""What is kept of dry runs: written, read again, and told apart from what is older."""

from __future__ import annotations

from pathlib import Path

from tests.families.compared import STEPS, Peaks, errors_percent
from tests.families.grid import GRID, PLAIN
from tests.families.kept import Kept, older, read_kept, told, write_kept
from tests.families.made_by import made_by

PEAKS = Peaks(init=1, each=(2, 3, 4, 5, 6, 9, 7, 8, 6), pinned=10, pageable=11)
SETTING = PLAIN[0]


def test_the_phases_have_names_and_the_last_step_is_the_steady_one() -> None:
    assert PEAKS.steps == 9
    assert (PEAKS.forward, PEAKS.backward, PEAKS.step) == (7, 8, 6)
    assert list(PEAKS.named) == [
        "init",
        *(f"step {n}, {p}" for n in (1, 2, 3) for p in ("forward", "backward", "step")),
    ]
    ours, theirs = (Peaks(init=init, each=(first,), pinned=0, pageable=0) for init, first in ((2, 2), (1, 4)))
    assert errors_percent(ours, theirs) == {"init": 100, "step 1, forward": -50}


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    kept = {SETTING.name: Kept(peaks=PEAKS, made_by={"fingerprint": "0", "torch": "2.13.0"}, date="2026-11-22")}
    path = tmp_path / "kept.json"
    write_kept(kept, path)
    assert read_kept(path) == kept
    assert path.read_text(encoding="utf-8").count("\n") == len(("{", "about", "runs", "run", "}", "}"))


def test_older_are_those_that_are_missing_or_made_by_others() -> None:
    now = Kept(peaks=PEAKS, made_by=made_by(told(SETTING)), date="2026-11-22")
    then = Kept(peaks=PEAKS, made_by={**now.made_by, "fingerprint": "0"}, date="2026-11-21")
    assert older({SETTING.name: now}, [SETTING]) == []
    assert older({SETTING.name: then}, [SETTING]) == [SETTING.name]
    assert older({}, [SETTING]) == [SETTING.name]


def test_every_kept_run_has_every_phase_and_its_maker() -> None:
    kept = read_kept()
    assert list(kept) == [setting.name for setting in GRID]
    for name, each in kept.items():
        assert len(each.peaks.each) == STEPS * 3, name
        assert set(each.made_by) == {"fingerprint", "torch", "deepspeed", "transformers"}, name
