"""runner.launch: how runs end, seen with stand-ins for the ranks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("psutil")

from dsplan.errors import EXIT_OUT_OF_MEMORY, EXIT_RUN_FAILED, EXIT_TIMEOUT, RunError
from runner import launch
from runner.diagnosis import Evidence, failure, log_tail, signal_of, timeout
from runner.progress import ProgressFile
from tests.runner.supervised import CHILDREN, MARKER, ROOT, run, running, spec, use_small_launcher, wait_for


@pytest.fixture(autouse=True)
def marker(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A value in the environment of everything a test starts; nothing that has it may outlive the test."""
    value = uuid.uuid4().hex
    monkeypatch.setenv(MARKER, value)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    yield value
    assert running(value) == []


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_launcher(monkeypatch)


def start_parent(module: str, output_dir: Path, *options: str) -> subprocess.Popen[bytes]:
    parent = [sys.executable, "-m", f"{CHILDREN}.parent", f"{CHILDREN}.{module}", str(output_dir), *options]
    return subprocess.Popen(parent, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def progressed(output_dir: Path, rank: int = 0) -> bool:
    return (output_dir / f"progress-{rank}.jsonl").exists()


# Under DeepSpeed's own launcher.


@pytest.mark.engine
def test_one_rank_gives_its_record_and_its_progress(tmp_path: Path) -> None:
    events: list[dict[str, Any]] = []
    records = run("succeeds", tmp_path / "new", on_progress=events.append)
    assert [record["rank"] for record in records] == [0]
    assert records[0]["argv"] == [str(tmp_path / "new" / "spec.json"), str(tmp_path / "new")]
    assert [event["event"] for event in events] == ["stage", "stage", "step"]
    assert events[-1] == {"event": "step", "step": 1, "steps": 1}


@pytest.mark.engine
def test_two_ranks_run_here_on_the_cpu_whatever_the_user_has_lying_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / ".deepspeed_env").write_text("SECRET=1\nnot even an assignment\n")
    (home / "hostfile").write_text("elsewhere slots=8\n")
    for package in ("runner", "mingpt", "torch"):
        (home / f"{package}.py").write_text("raise ImportError('not this one')\n")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(home)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,4")
    monkeypatch.setenv("LOCAL_SIZE", "7")
    monkeypatch.setenv("RANK", "5")
    records = run("succeeds", tmp_path / "out", ranks=2)
    assert [record["rank"] for record in records] == [0, 1]
    for rank, record in enumerate(records):
        env = record["env"]
        assert (env["LOCAL_RANK"], env["WORLD_SIZE"], env["MASTER_ADDR"]) == (str(rank), "2", "127.0.0.1")
        assert env["DS_ACCELERATOR"] == "cpu"
        assert env["CUDA_VISIBLE_DEVICES"] == ""
        assert env["SECRET"] is None


@pytest.mark.engine
def test_a_crash_names_rank_and_phase_and_does_not_wait_for_the_other_rank(tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(RunError, match="rank 0 failed in phase backward: ValueError: a planted fault") as caught:
        run("crashes", tmp_path, ranks=2)
    assert caught.value.exit_code == EXIT_RUN_FAILED
    assert time.monotonic() - started < 30
    message = str(caught.value)
    assert "Traceback" in message
    assert "[INFO]" not in message
    assert message.endswith(f"The whole log: {tmp_path / 'launcher.log'}")


@pytest.mark.engine
def test_a_killed_rank_is_found_out_although_another_one_reports_an_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"rank 1 was ended by SIGKILL after step 1 of 4.*host memory") as caught:
        run("is_killed", tmp_path, ranks=2)
    assert caught.value.exit_code == EXIT_OUT_OF_MEMORY


@pytest.mark.engine
def test_a_hang_under_deepspeed_ends_with_the_timeout(tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(RunError, match="no result within 8 s") as caught:
        run("hangs", tmp_path, ranks=2, timeout_s=8)
    assert caught.value.exit_code == EXIT_TIMEOUT
    assert time.monotonic() - started < 20


@pytest.mark.engine
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_nothing_of_deepspeed_outlives_the_parent(tmp_path: Path, marker: str, number: signal.Signals) -> None:
    with start_parent("hangs", tmp_path, "2") as parent:
        wait_for(lambda: progressed(tmp_path, 0) and progressed(tmp_path, 1))
        parent.send_signal(number)
        assert parent.wait(20) != 0
    wait_for(lambda: not running(marker), 10)


# Under a small launcher, which behaves like DeepSpeed's and starts at once.


@pytest.mark.usefixtures("small")
def test_running_out_of_memory_is_told_from_the_failures_it_causes(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="rank 1 ran out of memory in phase backward: OutOfMemoryError: CUDA") as caught:
        run("runs_out_of_memory", tmp_path, ranks=2)
    assert caught.value.exit_code == EXIT_OUT_OF_MEMORY


@pytest.mark.usefixtures("small")
def test_a_crash_without_a_failure_file_shows_the_log(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="exit code 1") as caught:
        run("crashes_silently", tmp_path)
    assert "ImportError: a planted fault" in str(caught.value)
    assert caught.value.exit_code == EXIT_RUN_FAILED


@pytest.mark.usefixtures("small")
def test_a_hang_is_ended_in_time_and_the_message_says_where_it_was(tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(RunError, match="rank 0 was last seen after step 1 of 4") as caught:
        run("hangs", tmp_path, timeout_s=2)
    assert caught.value.exit_code == EXIT_TIMEOUT
    assert 2 <= time.monotonic() - started < 8
    assert "hangs.py" in str(caught.value)  # the stack that the rank left in the log


@pytest.mark.usefixtures("small")
def test_a_rank_that_is_ended_can_give_back_its_locks(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="last seen while compiling"):
        run("compiles", tmp_path, timeout_s=2)
    assert not (tmp_path / "lock").exists()


@pytest.mark.usefixtures("small")
def test_ranks_that_ignore_sigterm_and_their_children_in_other_sessions_are_ended(tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(RunError, match="no result within 2 s"):
        run("is_stubborn", tmp_path, ranks=2, timeout_s=2)
    assert time.monotonic() - started < 15


@pytest.mark.usefixtures("small")
def test_what_a_successful_rank_leaves_behind_is_ended_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUCCEED", "1")
    assert len(run("is_stubborn", tmp_path)) == 1


@pytest.mark.usefixtures("small")
def test_an_error_in_the_callback_ends_the_run(tmp_path: Path) -> None:
    def refuse(event: dict[str, Any]) -> None:
        if event["event"] == "step":
            raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        run("hangs", tmp_path, on_progress=refuse)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_no_stubborn_descendant_outlives_the_parent(tmp_path: Path, marker: str, number: signal.Signals) -> None:
    with start_parent("is_stubborn", tmp_path, "1", "small") as parent:
        wait_for(lambda: progressed(tmp_path))
        parent.send_signal(number)
        assert parent.wait(20) != 0
    wait_for(lambda: not running(marker), 10)


@pytest.mark.usefixtures("small")
def test_the_records_of_an_earlier_run_are_not_taken_for_this_one(tmp_path: Path) -> None:
    assert run("succeeds", tmp_path)
    with pytest.raises(RunError):
        run("crashes_silently", tmp_path)


# The pieces.


@pytest.mark.parametrize(
    ("exit_code", "expected"),
    [(None, None), (0, None), (1, None), (255, None), (-9, 9), (137, 9), (247, 9), (-11, 11), (250, 6), (143, 15)],
)
def test_signals_are_recognised_in_exit_codes(exit_code: int | None, expected: int | None) -> None:
    assert signal_of(exit_code) == expected


def diagnose(output_dir: Path, launcher_code: int | None, exits: dict[int, int | None], ranks: int = 2) -> RunError:
    return failure(Evidence(output_dir=output_dir, ranks=range(ranks), launcher_code=launcher_code, exits=exits))


def test_a_kill_that_nobody_saw_is_known_from_the_launcher(tmp_path: Path) -> None:
    error = diagnose(tmp_path, 247, {})
    assert "a process of the run was ended by SIGKILL" in str(error)
    assert error.exit_code == EXIT_OUT_OF_MEMORY


def test_an_abort_is_a_consequence_of_a_reported_error_and_a_segmentation_fault_is_not(tmp_path: Path) -> None:
    (tmp_path / "failure-0.json").write_text('{"kind": "error", "phase": "step", "message": "boom"}')
    assert "rank 0 failed in phase step: boom" in str(diagnose(tmp_path, 250, {1: -6}))
    assert "rank 1 was ended by SIGSEGV" in str(diagnose(tmp_path, 1, {0: 1, 1: -11}))


def test_a_launcher_that_ends_without_records_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "rank-0.json").write_text("{}")
    assert "exit code 0, without a record from rank 1" in str(diagnose(tmp_path, 0, {0: 0}))


def test_the_tail_of_the_log_leaves_out_commentary(tmp_path: Path) -> None:
    log = tmp_path / "launcher.log"
    log.write_text(
        "[2026-01-01 00:00:00,000] [INFO] [launch.py:1:main] WORLD INFO DICT\n\n"
        "[2026-01-01 00:00:00,000] [WARNING] [runner.py:1:fetch] Unable to find hostfile, will proceed\n"
        "10%|#  \r100%|###\nValueError: boom\n"
        "[2026-01-01 00:00:00,000] [ERROR] [launch.py:1:handler] ['python'] exits with return code = 1\n"
    )
    assert log_tail(log) == ["100%|###", "ValueError: boom"]
    assert log_tail(tmp_path / "none.log") == []


def test_the_tail_of_the_log_shows_where_a_stack_is_innermost(tmp_path: Path) -> None:
    log = tmp_path / "launcher.log"
    stack = [f'  File "f{index}.py", line 1 in f' for index in range(20)]
    log.write_text("\n".join(["noise", "Current thread 0x1 (most recent call first):", *stack]))
    assert log_tail(log)[:2] == ["Current thread 0x1 (most recent call first):", stack[0]]
    assert len(log_tail(log)) == 15


def test_a_lock_that_a_killed_compilation_left_is_pointed_out(tmp_path: Path) -> None:
    (tmp_path / "launcher.log").write_text('Current thread 0x1:\n  File "torch/utils/file_baton.py", line 49 in wait\n')
    evidence = Evidence(output_dir=tmp_path, ranks=[0], launcher_code=None, exits={})
    assert "remove the files named lock below ~/.cache/torch_extensions" in str(timeout(evidence, 5.0))


def test_a_rank_that_the_launcher_ended_is_not_the_cause(tmp_path: Path) -> None:
    (tmp_path / "failure-1.json").write_text('{"kind": "error", "phase": "step", "message": "SystemExit: 143"}')
    assert "rank 0 ended with exit code 3" in str(diagnose(tmp_path, 3, {0: 3, 1: 1}))


def test_a_failure_file_that_is_no_failure_file_does_no_harm(tmp_path: Path) -> None:
    (tmp_path / "failure-0.json").write_text("[]")
    assert "rank 0 failed in phase unknown" in str(diagnose(tmp_path, 1, {}))


def test_progress_is_given_out_by_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "progress-0.jsonl"
    progress = ProgressFile(path)
    assert progress.new_events() == []
    path.write_text('{"event": "stage", "text": "a"}\nbroken\n{"event"')
    assert progress.new_events() == [{"event": "stage", "text": "a"}]
    with path.open("a") as file:
        file.write(': "stage", "text": "b"}\n')
    assert progress.new_events() == [{"event": "stage", "text": "b"}]
    assert progress.new_events() == []


def test_a_free_port_is_a_port() -> None:
    assert 1024 <= launch.free_port() < 65536


# python -m runner


def start_runner(spec_path: Path, output_dir: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "runner", str(spec_path), str(output_dir), "--timeout", "100"]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)


def test_the_runner_says_what_is_wrong_with_a_specification(tmp_path: Path) -> None:
    with start_runner(tmp_path / "none.json", tmp_path) as process:
        assert process.stdout is not None
        event = json.loads(process.stdout.read())
    assert (event["event"], event["exit_code"], process.returncode) == ("failed", 2, 2)
    assert "none.json" in event["message"]


@pytest.mark.engine
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_runner_with_130_and_leaves_nothing(
    tmp_path: Path, marker: str, number: signal.Signals
) -> None:
    spec().write(tmp_path / "run.json")
    with start_runner(tmp_path / "run.json", tmp_path) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["event"] == "stage"
        wait_for(lambda: len(running(marker)) >= 2)
        os.kill(process.pid, number)
        last = json.loads(process.stdout.read().splitlines()[-1])
    assert process.returncode == 130
    assert (last["event"], last["exit_code"]) == ("failed", 130)
