"""Dry runs that go wrong, as a user sees them: one clear message, the documented exit code, nothing left behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

pytest.importorskip("deepspeed")

from dsplan.errors import (
    EXIT_BAD_INPUT,
    EXIT_INTERRUPTED,
    EXIT_OUT_OF_MEMORY,
    EXIT_PREDICTION_MISSED,
    EXIT_RUN_FAILED,
    EXIT_TIMEOUT,
)
from tests.runner.supervised import MARKER, ROOT, running, wait_for

TINY = ["--n-layer", "2", "--n-head", "4", "--n-embd", "64", "--vocab-size", "128", "--block-size", "32"]
DRY = ["--device", "fake", "--gpu", "h200", *TINY]


@dataclass(frozen=True)
class Place:
    """Where a command runs: a mark on its processes, and a folder for what is temporary."""

    marker: str
    temporary: Path
    environment: dict[str, str]

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "dsplan", "verify", *arguments]
        return subprocess.Popen(
            command, cwd=ROOT, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def run(self, *arguments: str) -> tuple[int, str]:
        """(exit code, the last error)."""
        with self.start(*arguments) as process:
            _, said = process.communicate(timeout=120)
        return process.returncode, said[said.index("dsplan: error: ") :] if "dsplan: error: " in said else said

    def left(self) -> list[str]:
        return sorted(path.name for path in self.temporary.iterdir())

    def rank(self) -> psutil.Process | None:
        """The process of the rank, once it has taken a step."""
        if not any('"step"' in path.read_text() for path in self.temporary.glob("dsplan-verify-*/progress-0.jsonl")):
            return None
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARKER) == self.marker and "runner.train" in process.cmdline():
                    return process
            except (psutil.Error, OSError):
                continue
        return None


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    marker = uuid.uuid4().hex
    environment = {**os.environ, MARKER: marker, "TMPDIR": str(temporary), "PYTHONPATH": str(ROOT)}
    environment["TORCHINDUCTOR_CACHE_DIR"] = str(tmp_path / "cache")  # torch's own, which it keeps from run to run
    yield Place(marker, temporary, environment)
    wait_for(lambda: not running(marker), 10)


# Before anything runs.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpus", "0"], "--gpus: 0 is not allowed"),
        (["--gpus", "4", "--rank", "4"], "--rank: 4 is not allowed; of 4 ranks it must be 0 to 3"),
        (["--gpu", "h2000"], "--gpu: unknown name 'h2000'; did you mean h200"),
    ],
)
def test_what_cannot_be_run_is_one_line(arguments: list[str], message: str, place: Place) -> None:
    code, error = place.run("--device", "fake", *TINY, *arguments)
    assert code == EXIT_BAD_INPUT
    assert message in error
    assert error.count("\n") == 1
    assert place.left() == []


def test_a_specification_of_ranks_that_cannot_be_is_refused_by_the_runner(place: Place, tmp_path: Path) -> None:
    document = {
        "version": 1,
        "model": {},
        "ds_config": {},
        "sequence_length": 8,
        "device": "fake",
        "gpus": 2,
        "rank": 2,
    }
    path = tmp_path / "spec.json"
    path.write_text(json.dumps(document))
    command = [sys.executable, "-m", "runner", str(path), str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, env=place.environment, capture_output=True, text=True, check=False)
    event = json.loads(done.stdout)
    assert (done.returncode, event["exit_code"]) == (EXIT_BAD_INPUT, EXIT_BAD_INPUT)
    assert "rank: 2 is not allowed; of 2 ranks it must be 0 to 1" in event["message"]


# In the run.


def pretend_version(place: Place, folder: Path, deepspeed: str) -> None:
    """Have Python believe that another version of DeepSpeed is installed."""
    metadata = folder / "packages" / f"deepspeed-{deepspeed}.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: deepspeed\nVersion: {deepspeed}\n")
    place.environment["PYTHONPATH"] = os.pathsep.join([str(metadata.parent), str(ROOT)])


@pytest.mark.engine
def test_other_versions_stop_a_dry_run_unless_it_is_forced(place: Place, tmp_path: Path) -> None:
    pretend_version(place, tmp_path, "0.18.3")
    code, error = place.run(*DRY)
    assert code == EXIT_BAD_INPUT
    assert re.fullmatch(
        r"dsplan: error: the dry run is tested with torch .* and DeepSpeed .*, and this machine has torch \S+ and "
        r"DeepSpeed 0\.18\.3: .* --force\n",
        error,
    )
    assert place.left() == []
    code, error = place.run(*DRY, "--force", "--tolerance", "1000")
    assert code == 0, error
    assert place.left() == []


@pytest.mark.engine
@pytest.mark.parametrize(
    ("cap", "strategy", "expected"),
    [
        (
            "3GiB",
            "zero2",
            r"in phase step of step 1: zeros_like.* in FusedAdam\.step, deepspeed/ops/adam/fused_adam\.py:\d+ asked "
            r"for 621\.9 MiB, for which the allocator wanted 622\.0 MiB more of the device; 2\.24 GiB were allocated "
            r"and 2\.51 GiB reserved of 3\.00 GiB",
        ),
        (
            "2GiB",
            "zero3",
            r"in phase (forward|backward|step) of step 1: \S+ in \S+, (deepspeed|mingpt|torch)/\S+\.py:\d+ ",
        ),
        (
            "200MiB",
            "zero3",
            r"in phase init: .*, deepspeed/runtime/zero/partition_parameters\.py:\d+ asked for 73\.6 MiB",
        ),
    ],
)
def test_a_cap_that_is_too_small_names_phase_step_and_line(
    cap: str, strategy: str, expected: str, place: Place
) -> None:
    gpt2 = ["--device", "fake", "--gpu", "h200", "--model", "gpt2", "--gpus", "1"]
    code, error = place.run(*gpt2, "--strategy", strategy, "--cap", cap)
    assert code == EXIT_OUT_OF_MEMORY
    first, second, third = error.splitlines()
    assert re.match(rf"dsplan: error: rank 0 ran out of memory {expected}", first), first
    assert re.match(r"The plan had said: does not fit: .* at the peak, .* to live with", third), third
    # The log of a run that failed is kept.
    (folder,) = place.left()
    assert second == f"The whole log: {place.temporary / folder / 'launcher.log'}"


@pytest.mark.engine
def test_a_rank_that_is_killed_is_exit_code_4(place: Place) -> None:
    with place.start(*DRY, "--steps", "9999") as process:
        wait_for(place.rank)
        rank = place.rank()
        assert rank is not None
        rank.kill()
        _, said = process.communicate(timeout=60)
    assert process.returncode == EXIT_OUT_OF_MEMORY
    assert "dsplan: error: rank 0 was ended by SIGKILL" in said
    assert "host memory ran out" in said


@pytest.mark.engine
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_nothing(number: signal.Signals, place: Place) -> None:
    with place.start(*DRY, "--steps", "9999") as process:
        wait_for(place.rank)
        process.send_signal(number)
        process.communicate(timeout=60)
    assert process.returncode == EXIT_INTERRUPTED
    assert place.left() == []


@pytest.mark.engine
def test_a_planner_that_is_killed_takes_the_run_with_it(place: Place) -> None:
    with place.start(*DRY, "--steps", "9999") as process:
        wait_for(place.rank)
        process.kill()
    wait_for(lambda: not running(place.marker), 15)


@pytest.mark.engine
def test_a_dry_run_that_takes_too_long_is_exit_code_6(place: Place) -> None:
    code, error = place.run(*DRY, "--steps", "9999", "--timeout", "4")
    assert code == EXIT_TIMEOUT
    assert "no result within 4 s: rank 0 had not finished" in error


@pytest.mark.engine
def test_a_native_operator_that_is_not_covered_is_named(place: Place, tmp_path: Path) -> None:
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "bf16": {"enabled": True},
        "optimizer": {"type": "Lamb", "params": {"lr": 1e-3}},
        "zero_optimization": {"stage": 0},
    }
    spec = {
        "version": 1,
        "model": {"n_layer": 1, "n_head": 2, "n_embd": 32, "vocab_size": 64, "block_size": 16},
        "ds_config": {**config, "train_batch_size": 1},
        "sequence_length": 16,
        "device": "fake",
        "rank": 0,
        "target": {"name": "h200", "label": "H200", "memory_bytes": 2**37, "compute_capability": "9.0"},
    }
    path = tmp_path / "spec.json"
    path.write_text(json.dumps(spec))
    command = [sys.executable, "-m", "runner", str(path), str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, env=place.environment, capture_output=True, text=True, check=False)
    event = json.loads(done.stdout.splitlines()[-1])
    assert event["exit_code"] == done.returncode == EXIT_RUN_FAILED
    first = event["message"].splitlines()[0]
    assert first == (
        "rank 0 failed in phase init: NotImplementedError: the dry run does not cover DeepSpeed's operator 'fused_lamb'"
    )


def test_the_exit_codes_are_the_documented_ones() -> None:
    documented = dict(re.findall(r"^\| (\d+) \| (.*) \|$", (ROOT / "README.md").read_text(), re.MULTILINE))
    expected = {
        EXIT_PREDICTION_MISSED: "tolerance",
        EXIT_BAD_INPUT: "bad input",
        EXIT_OUT_OF_MEMORY: "memory",
        EXIT_RUN_FAILED: "crashed",
        EXIT_TIMEOUT: "--timeout",
        EXIT_INTERRUPTED: "nothing is left running",
    }
    assert {code: text in documented[str(code)] for code, text in expected.items()} == dict.fromkeys(expected, True)
