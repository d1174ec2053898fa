"""How a dry run is started and watched: one process, without DeepSpeed's launcher; seen with stand-ins for the rank."""

from __future__ import annotations

import json
import uuid
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("psutil")

from dsplan.errors import EXIT_BAD_INPUT, EXIT_NO_DEVICE, EXIT_OUT_OF_MEMORY, EXIT_RUN_FAILED, RunError
from dsplan.verify_device import CPU
from runner import launch
from runner.diagnosis import Evidence, failure
from runner.environment import child_environment
from runner.spec import RunSpec
from tests.runner.supervised import CHILDREN, MARKER, ROOT, running

OWN = "tests.runner.fake.children"


def dry_spec(rank: int = 3, gpus: int = 8) -> RunSpec:
    return RunSpec(model={}, ds_config={}, sequence_length=8, device="fake", gpus=gpus, rank=rank, target=asdict(CPU))


@pytest.fixture(autouse=True)
def marker(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A value in the environment of everything a test starts; nothing that has it may outlive the test."""
    value = uuid.uuid4().hex
    monkeypatch.setenv(MARKER, value)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    yield value
    assert running(value) == []


def dry_run(module: str, folder: Path, rank: int = 3, timeout_s: float = 60) -> list[dict[str, Any]]:
    return launch.run(dry_spec(rank), folder, timeout_s=timeout_s, on_progress=lambda _: None, module=module)


# The environment.


def test_the_one_process_is_told_the_rank_and_the_size_of_the_group() -> None:
    env = child_environment(dry_spec(), {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_PORT": "29500"})
    told = [env[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")]
    assert told == ["3", "8", "0", "127.0.0.1", "0"]


def test_it_sees_no_device_and_has_all_the_cores() -> None:
    env = child_environment(dry_spec(), {"CUDA_VISIBLE_DEVICES": "0,1"}, cores=6)
    assert env["CUDA_VISIBLE_DEVICES"] == ""
    assert env["DS_ACCELERATOR"] == "cpu"
    assert env["OMP_NUM_THREADS"] == "6"


# The specification.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gpus": 0}, "gpus: 0 is not allowed; it must be at least 1"),
        ({"gpus": -4}, "gpus: -4 is not allowed"),
        ({"rank": 8}, "rank: 8 is not allowed; of 8 ranks it must be 0 to 7"),
        ({"rank": -1}, "rank: -1 is not allowed; of 8 ranks it must be 0 to 7"),
        ({"rank": None}, "a dry run needs a rank and a target"),
        ({"target": None}, "a dry run needs a rank and a target"),
    ],
)
def test_ranks_that_cannot_be_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RunSpec(**{**asdict(dry_spec()), **changes})


def test_a_specification_reads_back_with_its_target(tmp_path: Path) -> None:
    dry_spec().write(tmp_path / "spec.json")
    found = RunSpec.read(tmp_path / "spec.json")
    assert (found.rank, found.gpus, found.force) == (3, 8, False)
    assert found.target is not None
    assert found.target["kind"] == "cpu"
    assert found.ranks == (3,)


# The process.


def test_there_is_no_launcher(tmp_path: Path) -> None:
    command = launch._command(dry_spec(), tmp_path, "runner.train", 29500)
    assert command[1:4] == ["-m", "runner.child", "runner.train"]
    assert not any("deepspeed" in part for part in command)


def test_one_rank_of_eight_gives_the_one_record(tmp_path: Path) -> None:
    (record,) = dry_run(f"{CHILDREN}.succeeds", tmp_path)
    assert (record["rank"], record["env"]["WORLD_SIZE"], record["env"]["LOCAL_RANK"]) == (3, "8", "0")
    assert sorted(path.name for path in tmp_path.glob("rank-*")) == ["rank-3.json"]


def test_a_killed_rank_is_known_by_its_number(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"^rank 7 was ended by SIGKILL after step 1 of 4\..*host memory") as caught:
        dry_run(f"{CHILDREN}.is_killed", tmp_path, rank=7)
    assert caught.value.exit_code == EXIT_OUT_OF_MEMORY


def test_what_the_rank_starts_is_not_taken_for_the_rank(tmp_path: Path) -> None:
    """DeepSpeed asks tools of the machine, in processes that inherit RANK and end before it does."""
    (record,) = dry_run(f"{OWN}.has_a_helper", tmp_path)
    assert record["rank"] == 3


def test_a_rank_that_ends_without_a_word_is_a_failure(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"^rank 3 ended with exit code 1 ") as caught:
        dry_run(f"{CHILDREN}.crashes_silently", tmp_path)
    assert caught.value.exit_code == EXIT_RUN_FAILED
    assert "ImportError: a planted fault" in str(caught.value)


def test_a_rank_that_hangs_is_ended_with_what_it_started(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no result within 2 s: rank 3 had not finished"):
        dry_run(f"{CHILDREN}.is_stubborn", tmp_path, timeout_s=2)


# What a failure says.


def reported(folder: Path, **document: Any) -> RunError:
    (folder / "launcher.log").write_text("Traceback (most recent call last):\n")
    (folder / "failure-3.json").write_text(json.dumps({"phase": "backward", "message": "boom", **document}))
    return failure(Evidence(output_dir=folder, ranks=[3], launcher_code=1, exits={3: 1}))


@pytest.mark.parametrize(
    ("kind", "exit_code", "text"),
    [
        ("out_of_memory", EXIT_OUT_OF_MEMORY, "rank 3 ran out of memory in phase backward of step 2: boom"),
        ("no_device", EXIT_NO_DEVICE, "rank 3 failed in phase backward of step 2: boom"),
        ("error", EXIT_RUN_FAILED, "rank 3 failed in phase backward of step 2: boom"),
    ],
)
def test_a_failure_names_phase_and_step(kind: str, exit_code: int, text: str, tmp_path: Path) -> None:
    error = reported(tmp_path, kind=kind, step=2)
    assert error.exit_code == exit_code
    assert str(error).splitlines()[0] == text
    assert "  | Traceback" in str(error)


def test_where_the_message_explains_all_the_log_is_only_named(tmp_path: Path) -> None:
    error = reported(tmp_path, kind="out_of_memory", explained=True)
    assert str(error).splitlines() == [
        "rank 3 ran out of memory in phase backward: boom",
        f"The whole log: {tmp_path / 'launcher.log'}",
    ]


def test_what_was_refused_is_one_line_of_no_rank(tmp_path: Path) -> None:
    error = reported(tmp_path, kind="bad_input", explained=True)
    assert (str(error), error.exit_code) == ("boom", EXIT_BAD_INPUT)
