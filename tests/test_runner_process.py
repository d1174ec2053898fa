"""dsplan.runner_process: the runner seen from the planner; most tests put a stand-in in its place."""

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

from dsplan import child_process, runner_process
from dsplan.errors import EXIT_OUT_OF_MEMORY, EXIT_RUN_FAILED, InputError, MissingExtraError, RunError
from dsplan.runner_process import run_verification

ROOT = Path(__file__).parents[1]
MARKER = "DSPLAN_TEST_MARKER"

PREAMBLE = """
import json, os, pathlib, signal, sys, time
spec, output_dir, option, timeout = sys.argv[1:]
assert option == "--timeout" and float(timeout) == 50.0, sys.argv
def say(**event):
    print(json.dumps(event), flush=True)
"""


@pytest.fixture
def marker(monkeypatch: pytest.MonkeyPatch) -> str:
    value = uuid.uuid4().hex
    monkeypatch.setenv(MARKER, value)
    return value


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Put code in the place of ``python -m runner``."""

    def install(code: str) -> None:
        package = tmp_path / "path" / "runner"
        package.mkdir(parents=True)
        (package / "__init__.py").touch()  # without it an installed runner would win
        (package / "__main__.py").write_text(PREAMBLE + code)
        monkeypatch.setattr(child_process, "pythonpath", lambda *_: str(package.parent))
        monkeypatch.setattr(runner_process, "require_run_extra", lambda: None)

    return install


def verified(tmp_path: Path, on_progress: Any = lambda _: None) -> list[dict[str, Any]]:
    return run_verification(tmp_path / "spec.json", tmp_path / "out", timeout_s=50, on_progress=on_progress)


def test_records_and_progress_come_back(tmp_path: Path, stand_in: Any) -> None:
    stand_in("""
assert os.getcwd() == output_dir and os.environ["DSPLAN_PARENT_PID"] == str(os.getppid())
say(event="stage", text="loading")
print("a library that cannot keep quiet")
print("3")
say(event="step", step=1, steps=1)
records = [pathlib.Path(output_dir, f"rank-{rank}.json") for rank in range(2)]
for rank, record in enumerate(records):
    record.write_text(json.dumps({"rank": rank}))
say(event="done", records=[str(record) for record in records])
""")
    events: list[dict[str, Any]] = []
    assert verified(tmp_path, events.append) == [{"rank": 0}, {"rank": 1}]
    assert [event["event"] for event in events] == ["stage", "step"]


def test_a_failure_keeps_its_exit_code_and_message(tmp_path: Path, stand_in: Any) -> None:
    stand_in('say(event="failed", exit_code=4, message="rank 0 ran out of memory"); sys.exit(4)')
    with pytest.raises(RunError, match="rank 0 ran out of memory") as caught:
        verified(tmp_path)
    assert caught.value.exit_code == EXIT_OUT_OF_MEMORY


def test_a_runner_that_breaks_off_is_an_error_with_its_log(tmp_path: Path, stand_in: Any) -> None:
    stand_in('say(event="stage", text="loading"); raise RuntimeError("planted")')
    with pytest.raises(RunError, match="broke off with exit code 1") as caught:
        verified(tmp_path)
    assert caught.value.exit_code == EXIT_RUN_FAILED
    assert "RuntimeError: planted" in str(caught.value)
    assert str(tmp_path / "out" / "runner.log") in str(caught.value)


def test_an_interrupt_waits_for_the_runner_to_clean_up(tmp_path: Path, stand_in: Any) -> None:
    stand_in("""
def clean_up(*_):
    time.sleep(0.5)
    pathlib.Path(output_dir, "cleaned-up").touch()
    sys.exit(130)
signal.signal(signal.SIGTERM, clean_up)
say(event="stage", text="up")
time.sleep(60)
""")

    def interrupt(_: dict[str, Any]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        verified(tmp_path, interrupt)
    assert (tmp_path / "out" / "cleaned-up").exists()


def test_a_runner_that_does_not_end_after_an_interrupt_is_killed(
    tmp_path: Path, stand_in: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in("signal.signal(signal.SIGTERM, signal.SIG_IGN); say(event='stage', text=str(os.getpid())); time.sleep(60)")
    monkeypatch.setattr(child_process, "END_S", 0.5)
    pids: list[int] = []

    def interrupt(event: dict[str, Any]) -> None:
        pids.append(int(event["text"]))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        verified(tmp_path, interrupt)
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)


def test_what_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"torch": object(), "psutil": object()}
    monkeypatch.setattr(child_process.importlib.util, "find_spec", found.get)
    with pytest.raises(MissingExtraError, match=r"needs deepspeed, .*pip install 'dsplan\[run\]'"):
        verified(tmp_path)
    assert not (tmp_path / "out").exists()


def test_the_planner_imports_neither_the_runner_nor_torch() -> None:
    code = "import sys, dsplan.runner_process; print({'runner', 'torch', 'deepspeed', 'psutil'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout == "set()\n"


def test_the_runner_imports_neither_torch_nor_deepspeed() -> None:
    pytest.importorskip("psutil")
    code = "import sys, runner.__main__; print({'torch', 'deepspeed', 'mingpt'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout == "set()\n"


@pytest.mark.engine
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_nothing_outlives_the_planner(tmp_path: Path, marker: str, number: signal.Signals) -> None:
    pytest.importorskip("deepspeed")
    from tests.runner.supervised import running, spec, wait_for

    spec().write(tmp_path / "spec.json")
    code = (
        "import pathlib, sys; from dsplan.runner_process import run_verification; "
        "run_verification(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), timeout_s=100, on_progress=print)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "spec.json"), str(tmp_path / "out")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as planner:
        wait_for(lambda: len(running(marker)) >= 3)  # the planner, the runner, the launcher
        time.sleep(1)
        planner.send_signal(number)
        assert planner.wait(30) != 0
    wait_for(lambda: not running(marker), 10)


def test_a_specification_that_cannot_be_read_is_reported(tmp_path: Path) -> None:
    for package in ("torch", "deepspeed", "psutil"):
        pytest.importorskip(package)
    (tmp_path / "spec.json").write_text(json.dumps({"version": 99}))
    with pytest.raises(InputError, match="version 99") as caught:
        verified(tmp_path)
    assert caught.value.exit_code == 2
