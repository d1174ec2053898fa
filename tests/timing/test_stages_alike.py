"""Stages 1 and 2 do the same on the device, and their update is one; accumulation and the hooks tell them apart."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from statistics import median

import pytest

from dsplan.catalogue import accelerator, preset
from dsplan.hardware import Cluster
from dsplan.strategies import find_plan, standard_plans
from dsplan.timing.engines import Work, work_of
from dsplan.timing.host import host_times
from dsplan.timing.profile import profile_of
from dsplan.timing.rates import machine
from dsplan.timing.step_time import step_time
from dsplan.workload import Workload
from tests.gpu.header import read_rows
from tests.timing import profiles

MODEL = preset("gpt2-xl")
ON = Cluster(accelerator=accelerator("h200"), gpus_per_node=2)
DATA = Path(__file__).parents[1] / "data"


def work(name: str, **zero: object) -> Work:
    plan = find_plan(standard_plans(MODEL, Workload()), name)
    return work_of(
        MODEL,
        replace(plan, zero=replace(plan.zero, **zero)),  # type: ignore[arg-type]
        ON,
        machine(accelerator("h200"), profiles.profile()),
    )


def test_the_device_does_the_same_for_both_and_at_stage_2_after_every_micro_batch() -> None:
    one, two = work("zero1"), work("zero2")
    assert one.kernels_s(boundary=True) == two.kernels_s(boundary=True) == two.kernels_s(boundary=False) > 0
    assert one.kernels_s(boundary=False) == 0
    assert replace(one, reduces_every_micro_batch=True) == two


def test_a_gradient_is_copied_into_the_bucket_divided_and_copied_out() -> None:
    """Of gpt2-xl on one rank: 580 of its parameters go through the bucket, which is copied twice and divided."""
    case = json.loads((DATA / "regret_kernels.json").read_text())["cases"][1]
    assert (case["setting"], case["strategy"]) == ("xl-sdpa-n1-40", "zero1-ckpt")
    copies = next(row for row in case["profiled"]["backward"]["kernels"] if row[0].startswith("Memcpy DtoD"))
    num_tensors = len(MODEL.parameters)
    assert copies[1] == pytest.approx(2 * num_tensors, abs=2)
    psi = MODEL.num_parameters
    profile = machine(accelerator("h200")).profile
    assert 2 * profile.elementwise("copy", "bf16", psi) == pytest.approx(copies[2], rel=0.25)


def test_the_step_of_both_is_the_median_of_what_was_measured_of_either() -> None:
    document = profiles.document()
    for row in document["engine"]:
        if row["strategy"] == "zero2":
            row["step_s"] *= 1.5
    plans = standard_plans(MODEL, Workload())
    one, two = (host_times(profile_of(document), MODEL, find_plan(plans, name), 1).step for name in ("zero1", "zero2"))
    rows = [row for row in document["engine"] if row["strategy"] in ("zero1", "zero2")]
    deep, shallow = (median(row["step_s"] for row in rows if row["num_layers"] == depth) for depth in (8, 2))
    assert one == two == pytest.approx(shallow + (deep - shallow) / 6 * (MODEL.num_layers - 2))


def test_where_the_device_sets_the_pace_both_take_the_same_as_was_measured() -> None:
    """xl-sdpa-n1-40 in turns on one card: a fiftieth apart at most."""
    rows = read_rows(DATA / "regret_repeats.json")
    model = replace(MODEL, attention="sdpa", dropout=0.0)
    for size in (1, 8, 16):
        measured = {row["strategy"]: row["seconds"] for row in rows if row["micro_batch_size"] == size}
        assert measured["zero1-ckpt"] == pytest.approx(measured["zero2-ckpt"], rel=0.025)
        if size == 1:  # the host's: its hooks are not the same
            continue
        plans = standard_plans(model, Workload(micro_batch_size=size, sequence_length=1024))
        on = Cluster(accelerator=accelerator("h200"), gpus_per_node=1)
        one, two = (
            step_time(model, find_plan(plans, name), on, machine(accelerator("h200"))).seconds for name in measured
        )
        assert one == two
