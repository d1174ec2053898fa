"""Dry runs of what was measured on H200 GPUs, by ``dsplan verify --against RECORD``, as a user makes them but for one
process from which all are forked (a line of README.md is run as it is).

A few of the records, one of each kind, of small models; all of them are in docs/accuracy.md.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dsplan import verification
from dsplan.cli import main
from dsplan.errors import EXIT_OK
from tests.dry_runs import Server

pytest.importorskip("deepspeed")

ROOT = Path(__file__).parents[1]
RECORDS = (
    "gpt2-z0-fp32-sdpa-n1",
    "gpt2-z0-bf16-n4",
    "gpt2-z1-fp16-n1",  # skips its first steps
    "gpt2-z2-overlap-n2",
    "gpt2-z2-offload-gas2-n2",
    "gpt2-z3-bf16-n1",
    "gpt2-z3-offload-param-n1",
    "gpt2-medium-z3-ckpt-n1",
)
#: Per cent, of what issue 3 asks for.
ALLOCATED = 0.3
RESERVED = 5.0
RESERVED_OFFLOAD = 8.0


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server() as server:
        yield server


@pytest.fixture
def forked(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The dry run of ``verify`` is made by the server; its own process would import torch and DeepSpeed for each."""
    from runner.spec import RunSpec

    def run(spec_path: Path, output_dir: Path, *, timeout_s: float, on_progress: Any) -> list[dict[str, Any]]:
        outcome = server.outcome(RunSpec.read(spec_path))
        assert not isinstance(outcome, str), outcome
        return [outcome]

    monkeypatch.setattr(verification, "run_verification", run)


def off(difference: dict[str, Any]) -> float:
    """Per cent; infinite where something was predicted and nothing was there."""
    percent = difference["error_percent"]
    return float("inf") if percent is None else abs(percent)


@pytest.mark.engine
@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize("name", RECORDS)
def test_a_dry_run_takes_what_the_gpu_took(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    record = ROOT / "tests" / "data" / "measured" / f"{name}.json"
    code = main(["verify", "--against", str(record), "--json"])
    said = capsys.readouterr()
    assert code == EXIT_OK, said.err
    document = json.loads(said.out)
    comparison = document["comparison"]
    assert comparison["against"].endswith(f"{name}.json")
    peaks = {(found["step"], found["phase"]): found["peak"] for found in comparison["phases"]}
    assert len(peaks) >= 1 + 3  # the initialisation, and the phases of at least one kind of step
    if comparison["num_skipped_steps"]:
        # The first step that made an update came after others, which had left the backward pass's workspace: it is
        # compared with a first pass of the dry run, which skips nothing.
        for phase in ("forward", "backward"):
            peaks.pop(("first step", phase), None)
    peaks["all steps", "any phase"] = comparison["peak_allocated"]
    wrong = {" of ".join(reversed(key)): f"{off(peak):.3f} %" for key, peak in peaks.items() if off(peak) > ALLOCATED}
    assert wrong == {}, f"the dry run's peak is off by more than {ALLOCATED} %"
    offloads = any(key.startswith("offload") for key in document["configuration"]["ds_config"]["zero_optimization"])
    assert off(comparison["peak_reserved"]) <= (RESERVED_OFFLOAD if offloads else RESERVED)
