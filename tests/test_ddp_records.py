"""Records of torch's DDP on one, two and four H200, against the formulas."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest

from dsplan.catalogue import accelerator, preset
from dsplan.dsconfig.ddp import is_ddp
from dsplan.strategies import ddp_plans
from dsplan.units import GIB
from dsplan.verdict.cap import under_cap
from dsplan.verdict.judge import DOES_NOT_FIT, FITS
from dsplan.workload import Workload
from tests.ddp_records import RECORDS, Held, held, read, table
from tests.gpu.ddp_cases import DDP

#: A ten-thousandth: predictions are replayed by the rules of torch's allocator (dsplan/verdict/counted.py).
SHARE = 0.0001


@cache
def rows() -> tuple[Held, ...]:
    return tuple(held(name, measurement) for name, measurement in read().items())


def test_every_case_was_recorded() -> None:
    assert sorted(row.name for row in rows()) == sorted(case.name for case in DDP)
    assert all(is_ddp(row.measurement.configuration.ds_config) for row in rows())
    assert len(table(list(rows()))) == 2 + len(DDP)


@pytest.mark.parametrize("name", [case.name for case in DDP])
def test_every_phase_is_what_the_card_was_asked_for(name: str) -> None:
    (row,) = [row for row in rows() if row.name == name]
    for phase in row.comparison.phases:
        for found in (phase.level, phase.peak):
            assert abs(found.error_bytes) <= SHARE * found.measured_bytes, phase


def test_the_first_bucket_has_gone_before_the_others_are_made() -> None:
    """Also in loops that wait for nothing; else the second forward pass were higher by a bucket of all gradients."""
    found = json.loads((RECORDS.parent / "ddp_rebuild.json").read_text(encoding="utf-8"))
    assert {row["pause_s"] for row in found} == {0.0, 0.3}
    for row in found:
        second, third = row["steps"][1:3]
        assert second["forward"] - third["forward"] < 0.01 * row["bucket_bytes"]
        assert second["backward"] - third["backward"] < 0.01 * row["bucket_bytes"]


CAPS = json.loads((RECORDS.parent / "ddp_caps.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("row", CAPS["caps"], ids=lambda row: f"{row['cap_gib']} GiB")
def test_a_run_with_so_much_memory_dies_where_the_replay_says(row: dict[str, Any]) -> None:
    workload = Workload(precision=CAPS["precision"], sequence_length=CAPS["sequence_length"])
    found = under_cap(preset(CAPS["model"]), ddp_plans(workload)[0], 1, accelerator("h200"), int(row["cap_gib"] * GIB))
    assert found.pressed.verdict == (FITS if row["died_in"] is None else DOES_NOT_FIT)
    if row["died_in"] is not None:
        assert found.pressed.moment is not None
        assert found.pressed.moment.phase == row["died_in"]["phase"]
