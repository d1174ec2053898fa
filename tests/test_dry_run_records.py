"""Dry runs of what was measured on H200 GPUs, made as a user makes them: ``dsplan verify --against RECORD``.

A few of the records, one of each kind, of small models; all of them are in docs/accuracy.md.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from dsplan.errors import EXIT_OK

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


def dry_run(name: str) -> subprocess.CompletedProcess[str]:
    record = ROOT / "tests" / "data" / "measured" / f"{name}.json"
    command = [sys.executable, "-m", "dsplan", "verify", "--against", str(record), "--json"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def dry_runs(request: pytest.FixtureRequest) -> Iterator[dict[str, Future[subprocess.CompletedProcess[str]]]]:
    """The dry runs of the records whose tests were asked for, two at a time."""
    names = [item.callspec.params["name"] for item in request.session.items if item.fspath == request.node.fspath]
    with ThreadPoolExecutor(2) as pool:
        yield {name: pool.submit(dry_run, name) for name in names}
        pool.shutdown(cancel_futures=True)


def off(difference: dict[str, Any]) -> float:
    """Per cent; infinite where something was predicted and nothing was there."""
    percent = difference["error_percent"]
    return float("inf") if percent is None else abs(percent)


@pytest.mark.engine
@pytest.mark.parametrize("name", RECORDS)
def test_a_dry_run_takes_what_the_gpu_took(
    name: str, dry_runs: dict[str, Future[subprocess.CompletedProcess[str]]]
) -> None:
    done = dry_runs[name].result()
    assert done.returncode == EXIT_OK, done.stderr
    document = json.loads(done.stdout)
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
