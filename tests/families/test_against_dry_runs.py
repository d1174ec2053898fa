"""The formulas of transformers' decoders against dry runs: a grid that is kept, and a few made anew."""

from __future__ import annotations

import statistics

import pytest

from tests.families.compared import dry, error_percent, errors_percent, predicted, rank_of
from tests.families.dry import outcomes
from tests.families.grid import GRID, IN_CI, Setting
from tests.families.report import PAGE, measured, page_with

MEDIAN_PERCENT = 1.0
WORST_PERCENT = 3.0
#: What a phase may be off at most, in the first step and in those that follow; beyond it a cause has to be found.
PHASE_PERCENT = 0.2


def test_the_grid_holds() -> None:
    found = measured()
    assert len(GRID) >= 60
    assert set(found) >= {setting.name for setting in GRID}
    errors = {setting.name: error_percent(predicted(setting), found[setting.name]) for setting in GRID}
    assert statistics.median(map(abs, errors.values())) <= MEDIAN_PERCENT
    assert max(map(abs, errors.values())) <= WORST_PERCENT, max(errors, key=lambda name: abs(errors[name]))


def test_every_phase_is_near() -> None:
    found = measured()
    beyond = [
        (setting.name, phase, round(error, 3))
        for setting in GRID
        for phase, error in errors_percent(predicted(setting), found[setting.name]).items()
        if abs(error) > PHASE_PERCENT
    ]
    assert beyond == []


def test_the_page_has_the_table_of_the_grid() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert page_with(text, measured()) == text


@pytest.mark.engine
def test_a_few_dry_runs_still_come_out_as_the_formulas() -> None:
    settings: dict[str, Setting] = {setting.name: setting for setting in IN_CI}
    for name, record in outcomes({name: setting.spec(rank_of(setting), steps=2) for name, setting in settings.items()}):
        assert not isinstance(record, str), f"{name}: {record}"
        assert record["num_parameters"] == settings[name].model.num_parameters
        assert abs(error_percent(predicted(settings[name]), dry(record))) <= MEDIAN_PERCENT, name
