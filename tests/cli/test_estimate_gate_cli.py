"""dsplan estimate's verdicts at the command line: the gate, the ladder, the allocator's settings."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import jsonschema
import pytest

from dsplan.cli import main
from dsplan.schemas import schema

SMALL = ("estimate", "--n-layer", "2", "--n-head", "4", "--n-embd", "256", "--block-size", "128", "--vocab-size", "512")
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def real(capsys: pytest.CaptureFixture[str]) -> Run:
    """The real formulas: exit code, output, errors."""

    def command(*arguments: str) -> tuple[int, str, str]:
        code = main(arguments)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return command


def plan(real: Run, *arguments: str) -> dict[str, Any]:
    document = json.loads(real(*SMALL, *arguments, "--json")[1])
    jsonschema.validate(document, schema("estimate"))
    found: dict[str, Any] = document["plans"][0]
    return found


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ("--gpu t4 --plan zero1 --host-memory 64GB --require fits", 0, ""),
        ("--gpu t4 --plan zero1 --require fits", 0, "warning: --require fits: nothing is said of CPU memory"),
        (
            "--gpu t4 --plan zero1 --micro-batch-size 4096 --require fits",
            1,
            "zero1: does not fit: the device is short by",
        ),
        ("--gpu t4 --host-memory 64GB --require fits", 0, ""),
        ("--gpu t4 --micro-batch-size 60000 --require fits", 1, "--require fits: none of the 16 plans does"),
        ("--gpu t4 --micro-batch-size 60000 --require tight", 1, "--require tight: none of the 16 plans does"),
        ("--gpu t4 --host-memory 1GB --plan zero1 --require fits", 1, "the host is short by"),
        ("--gpu t4 --require fit", 2, "--require: unknown value 'fit'; did you mean fits"),
        ("--require fits", 2, "--require fits: there is no verdict without a device; name one with --gpu"),
        ("--gpu t4 --alloc-conf expandable_segment:True", 2, "did you mean expandable_segments"),
    ],
)
def test_the_gate(real: Run, arguments: str, code: int, said: str) -> None:
    found, out, err = real(*SMALL, *arguments.split())
    assert found == code
    assert said in err
    assert err.count("\n") == bool(said)
    assert ("Workload:" in out) == (code != 2)


def test_the_gate_leaves_the_document_whole(real: Run) -> None:
    code, out, err = real(*SMALL, "--gpu", "t4", "--micro-batch-size", "60000", "--require", "fits", "--json")
    assert code == 1
    assert err.startswith("dsplan: --require fits")
    jsonschema.validate(json.loads(out), schema("estimate"))


def test_one_plan_has_all_three_numbers(real: Run) -> None:
    found = plan(real, "--gpu", "t4", "--plan", "zero2-ckpt", "--micro-batch-size", "64")
    allocator = found["allocator"]
    assert found["verdict"] == "fits"
    assert found["device"]["peak_bytes"] * 0.99 <= allocator["least_bytes"] <= allocator["reserved_bytes"]
    assert allocator["reserved_bytes"] < allocator["reserved_bound_bytes"]
    assert found["headroom_bytes"] == allocator["offered_bytes"] - allocator["least_bytes"]
    assert found["headroom_percent"] == pytest.approx(
        100 * found["headroom_bytes"] / allocator["offered_bytes"], abs=0.01
    )


def test_the_ladder_is_the_edge_of_the_verdict(real: Run) -> None:
    common = ("--gpu", "t4", "--plan", "zero1")
    found = plan(real, *common, "--ladder")
    largest = found["max_micro_batch_size"]
    assert largest > 100
    assert plan(real, *common, "--micro-batch-size", str(largest))["verdict"] == "fits"
    assert plan(real, *common, "--micro-batch-size", str(largest + 1))["verdict"] != "fits"
    assert found["max_sequence_length"] == 128
    tight = plan(real, *common, "--micro-batch-size", str(2 * largest), "--ladder")
    longest = tight["max_sequence_length"]
    assert 50 < longest < 128
    assert plan(real, *common, "--micro-batch-size", str(2 * largest), "--seq-len", str(longest))["verdict"] == "fits"


def test_what_would_help_is_said_with_what_it_saves(real: Run) -> None:
    found = plan(real, "--gpu", "t4", "--gpus", "2", "--plan", "zero0", "--micro-batch-size", "3600")
    assert found["verdict"] == "does not fit"
    remedies = {remedy["change"]: remedy for remedy in found["remedies"]}
    assert remedies["activation checkpointing"]["verdict"] == "fits"
    assert remedies["micro batch 1800, 2 accumulation steps"]["saved_bytes"] > 2**30
    assert all(remedy["saved_bytes"] > 0 for remedy in found["remedies"])
    out = real(*SMALL, "--gpu", "t4", "--gpus", "2", "--plan", "zero0", "--micro-batch-size", "3600")[1]
    assert "Most of the peak:" in out
    assert "activation checkpointing: needs" in out
    assert max(len(line) for line in out.splitlines()) <= 80


def test_the_allocator_s_settings_count(real: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    common = ("--gpu", "t4", "--plan", "zero2-ckpt", "--micro-batch-size", "512")
    usual = plan(real, *common)["allocator"]["reserved_bytes"]
    assert plan(real, *common, "--alloc-conf", "expandable_segments:True")["allocator"]["reserved_bytes"] < usual
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    document = json.loads(real(*SMALL, *common, "--json")[1])
    assert document["cluster"]["allocator"] == "expandable_segments:True"
    assert "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True" in real(*SMALL, *common)[1].replace("\n", "")


@pytest.mark.engine
def test_exact_asks_the_real_engine_in_a_dry_run(real: Run) -> None:
    found = plan(real, "--gpu", "t4", "--plan", "zero2", "--precision", "fp32", "--exact")
    assert (found["judged_by"], found["verdict"]) == ("dry run", "fits")
    usual = plan(real, "--gpu", "t4", "--plan", "zero2", "--precision", "fp32")
    assert usual["judged_by"] == "replay"
    assert found["allocator"]["reserved_bytes"] == pytest.approx(usual["allocator"]["reserved_bytes"], rel=0.05)


def test_exact_needs_a_device_whose_allocator_is_replayed(real: Run) -> None:
    code, _, err = real(*SMALL, "--plan", "zero2", "--exact")
    assert code == 2
    assert "--exact: a dry run needs a device" in err
    assert err.count("\n") == 1
