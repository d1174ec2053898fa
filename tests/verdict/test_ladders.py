"""The verdict against what GPUs did: the boundary of ladders that were climbed there, and runs under older caps."""

from __future__ import annotations

import json
from typing import Any

import pytest

from dsplan.verdict.judge import DOES_NOT_FIT, FITS, press
from tests.gpu.cases import FIRST, SECOND
from tests.gpu.ladder_settings import SETTINGS, Setting
from tests.ladder_report import LIVED, RECORDS, SEEN, candidates_of, judged_rung

SETTING = {setting.name: setting for setting in SETTINGS}
LADDERS: list[dict[str, Any]] = json.loads(SEEN.read_text(encoding="utf-8"))["ladders"]
#: Of a hundred and more milliseconds each: the whole report is ``python -m tests.ladder_report``.
QUICK = [ladder for ladder in LADDERS if ladder["name"].startswith(("gpt2-z", "gpt2-medium")) and ladder["rungs"]]
#: Of the second set the half that was not seen, of four ranks and of one.
UNSEEN: list[dict[str, Any]] = json.loads(RECORDS["second"][1].read_text(encoding="utf-8"))["ladders"]
QUICK_UNSEEN = [ladder for ladder in UNSEEN if ladder["name"].startswith("gpt2-z") and ladder["rungs"]]


@pytest.mark.parametrize("ladder", [*QUICK, *QUICK_UNSEEN], ids=lambda ladder: ladder["name"])
def test_what_died_was_not_promised_and_what_lived_was_not_refused(ladder: dict[str, Any]) -> None:
    refused = []
    for rung in ladder["rungs"]:
        size, offered = rung["micro_batch_size"], ladder["cap_bytes"]
        verdict = judged_rung(SETTING[ladder["name"]], size, offered).verdict
        if rung["outcome"] == LIVED:
            refused += [size] if verdict == DOES_NOT_FIT else []
        else:
            assert verdict != FITS, size
    assert len(refused) <= 1


def test_the_allocator_s_levels_are_those_of_the_record() -> None:
    """Allocated and reserved, of every quick rung on one stream that never had to give back its cache."""
    seen = 0
    for ladder in (ladder for ladder in QUICK if "fp16" not in ladder["name"]):  # which is traced twice
        for rung in ladder["rungs"]:
            allocators = [rank["allocator"] or {} for rank in rung["ranks"]]
            if rung["outcome"] != LIVED or any(allocator.get("num_alloc_retries") for allocator in allocators):
                continue
            candidates, _ = candidates_of(SETTING[ladder["name"]], rung["micro_batch_size"])
            steps = [step for rank in rung["ranks"] for step in (rank["init"], *rank["steps"])]
            assert candidates.allocated_bytes == pytest.approx(max(step[0] for step in steps), rel=0.002)
            assert candidates.reserved_bytes == pytest.approx(max(step[1] for step in steps), rel=0.005)
            seen += 1
    assert seen >= 10


CAPS: list[dict[str, Any]] = json.loads((SEEN.parent / "caps.json").read_text(encoding="utf-8"))["runs"]
OLDER = {case.name: case for case in (*FIRST, *SECOND) if case.name in {run["name"] for run in CAPS}}


@pytest.mark.parametrize("name", [name for name in OLDER if name.startswith(("gpt2-z", "453M"))])
def test_no_run_under_an_older_cap_was_promised_and_died(name: str) -> None:
    setting = Setting(case=OLDER[name], cap_gib=0)
    candidates, peak = candidates_of(setting, setting.case.micro_batch_size)
    verdicts = {
        run["factor"]: press(candidates, peak, run["cap_bytes"], closely=False).verdict
        for run in CAPS
        if run["name"] == name and run["exit_code"] != 0
    }
    assert FITS not in verdicts.values()
