"""The table of throughput: measured steps relative to DDP's, beside predictions and published epochs."""

from __future__ import annotations

import json

import pytest

from dsplan.timing.profiles import shipped
from tests.gpu.ddp_cases import THROUGHPUT
from tests.measurements import FIRST, STEADY, measurement, rank_record, step
from tests.throughput import NAMES, RECORDS, Row, predicted, rows, seconds, table
from tests.timing.test_published import EPOCHS


def test_every_case_has_a_name_and_a_prediction() -> None:
    assert [case.name for case in THROUGHPUT] == list(NAMES)
    assert set(EPOCHS) < set(NAMES)
    assert all(predicted(name, 4, shipped("h200")) > 0 for name in NAMES)


def test_ratios_are_of_ddp() -> None:
    found = table(
        [
            Row(name="ddp", measured=0.1, predicted=0.2, calibrated=0.1, published=43.69),
            Row(name="zero2", measured=0.05, predicted=0.3, calibrated=0.1, published=None),
            Row(name="zero3", measured=0.25, predicted=0.2, calibrated=0.3, published=45.05),
        ]
    )
    assert found[2:] == [
        "| DDP | 100 | 1.00 | 200 | 1.00 | 100 | 1.00 | 43.69 | 1.00 |",
        "| ZeRO-2 | 50 | 0.50 | 300 | 1.50 | 100 | 1.00 |  |  |",
        "| ZeRO-3 | 250 | 2.50 | 200 | 1.00 | 300 | 3.00 | 45.05 | 1.03 |",
    ]


def test_what_was_not_recorded_is_named() -> None:
    with pytest.raises(LookupError, match="not recorded: ddp, zero2, zero3, zero3-offload, zero3-offload-ckpt"):
        rows([{"name": "ddp", "failure": "out of memory"}])


def test_steps_that_warm_up_or_update_nothing_are_left_out() -> None:
    times = [9.0, 8.0, 7.0, 0.2, 0.5, 0.3]
    steps = [{**step(index, STEADY if index else FIRST), "seconds": time} for index, time in enumerate(times)]
    skipped = {**step(0, FIRST, skipped=True), "seconds": 0.01}
    assert seconds(measurement(rank_record(steps=[skipped, *steps]))) == 0.3


def test_offload_costs_several_times_what_ddp_does() -> None:
    found = {row.name: row.measured for row in rows(json.loads(RECORDS.read_text(encoding="utf-8")))}
    assert min(found["zero3-offload"], found["zero3-offload-ckpt"]) > 2 * found["ddp"]
