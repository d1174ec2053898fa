"""Children of the planner: started with the packages on their path, told to end, ended when they do not."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from dsplan import child_process
from dsplan.child_process import require_run_extra, supervised
from dsplan.errors import MissingExtraError

_LISTENS = "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(7)); print('up', flush=True)\n"


def test_what_it_says_is_read_and_it_has_ended_after(tmp_path: Path) -> None:
    code = "import dsplan, os; print(os.getcwd()); print(os.environ['DSPLAN_PARENT_PID'])"
    with supervised([sys.executable, "-c", code], tmp_path, subprocess.STDOUT) as process:
        assert process.stdout is not None
        folder, parent = process.stdout.read().decode().split()
    assert (Path(folder), int(parent)) == (tmp_path, child_process.os.getpid())
    assert process.returncode == 0


def left_by(error: BaseException, code: str, folder: Path) -> None:
    """Start ``code``, wait until it says something, and leave the context by ``error``."""
    with supervised([sys.executable, "-c", code], folder, subprocess.STDOUT) as process:
        STARTED.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        raise error


STARTED: list[subprocess.Popen[bytes]] = []


def test_an_exception_ends_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="mine"):
        left_by(ValueError("mine"), f"{_LISTENS}time.sleep(60)", tmp_path)
    assert STARTED.pop().returncode == 7


def test_one_that_does_not_end_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child_process, "END_S", 0.2)
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        left_by(KeyboardInterrupt(), deaf, tmp_path)
    assert STARTED.pop().returncode == -9
    assert time.monotonic() - begun < 20


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child_process.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"^a timed run needs torch, deepspeed, psutil.*dsplan\[run\]"):
        require_run_extra("a timed run")
