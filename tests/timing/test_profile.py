"""Profiles: valid ones are read, broken ones are refused with file and key."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dsplan.errors import InputError
from dsplan.model import ModelShape
from dsplan.records import mistakes
from dsplan.strategies import find_plan, standard_plans
from dsplan.timing.host import host_times
from dsplan.timing.profile import Profile, read_profile
from dsplan.workload import Workload
from tests.timing import profiles


def test_a_profile_is_valid_and_read_back(tmp_path: Path) -> None:
    made = profiles.document()
    assert mistakes("profile", made) == []
    (tmp_path / "p.json").write_text(json.dumps(made))
    found = read_profile(tmp_path / "p.json")
    assert found.name == "made-up"
    assert found.linear("bf16", 2048, 1024, 1024)[0] == pytest.approx(2 * 2048 * 1024**2 / profiles.HALF)


def test_half_precisions_share_their_times() -> None:
    found = profiles.profile()
    assert found.linear("fp16", 2048, 1024, 1024) == found.linear("bf16", 2048, 1024, 1024)


def test_a_broken_profile_is_named_with_its_key(tmp_path: Path) -> None:
    made = profiles.document()
    made["linear"][0]["forward_s"] = -1
    (tmp_path / "p.json").write_text(json.dumps(made))
    with pytest.raises(InputError, match=r"p\.json: linear\[0\]\.forward_s"):
        read_profile(tmp_path / "p.json")


def test_an_odd_width_costs_what_the_measured_one_costs_its_even_neighbour() -> None:
    made = profiles.document()
    for row in made["linear"]:
        if row["outputs"] == 50257:
            row["forward_s"] *= 5
    found = Profile(name="x", label="x", document=made)
    for inputs, outputs in ((1024, 50257), (1024, 1001), (1001, 1024)):
        even = found.linear("bf16", 2048, inputs // 8 * 8, outputs // 8 * 8)
        odd = found.linear("bf16", 2048, inputs, outputs)
        assert odd[0] == pytest.approx(5 * even[0], rel=0.03)
        assert odd[1] == pytest.approx(even[1], rel=0.03)
    assert found.linear("fp32", 2048, 1024, 1001)[0] == pytest.approx(
        found.linear("fp32", 2048, 1024, 1000)[0], rel=0.03
    )


def test_of_what_several_rows_measure_the_median_counts() -> None:
    made, odd = profiles.document(), profiles.document()
    for row in odd["engine"]:
        if row["strategy"] == "zero2":  # a machine that was busy while this one was measured
            row["forward_s"] *= 3
        if row["checkpointing"] != "none":  # the step goes over parameters, whatever was recomputed
            row["step_s"] *= 1.5
    model = ModelShape(num_layers=8, hidden_size=64, num_attention_heads=1, attention="eager", activation="gelu_new")
    plans = standard_plans(model, Workload(sequence_length=128))
    for name in ("zero2", "zero2-ckpt"):
        first, second = (
            host_times(Profile(name="x", label="x", document=document), model, find_plan(plans, name), 1)
            for document in (made, odd)
        )
        assert second.forward == first.forward
        assert second.step == pytest.approx(1.25 * first.step)  # of one row of each kind the middle


def test_a_call_that_the_host_paces_is_known_by_the_small_ones_of_any_dtype() -> None:
    made = profiles.document()
    made["fused_attention"] = [
        row for row in made["fused_attention"] if row["dtype"] == "fp32" or row["batch"] * row["rows"] > 2**20
    ]
    kept = {row["batch"]: row["forward_s"] for row in made["fused_attention"] if row["dtype"] == "bf16"}
    found = Profile(name="x", label="x", document=made)
    for batch, seconds in kept.items():
        assert found.fused_attention("bf16", batch, 2048, 64, False)[0] <= seconds
    assert found.fused_attention("bf16", 1024, 2048, 64, False)[0] == pytest.approx(
        profiles.profile().fused_attention("bf16", 1024, 2048, 64, False)[0]
    )
