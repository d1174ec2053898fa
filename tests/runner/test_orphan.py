"""runner.orphan: a child does not outlive the parent that is named to it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

pytest.importorskip("psutil")

import psutil

from runner.orphan import PARENT_PID, RUN_ID, alive, exit_with_parent
from tests.runner.supervised import ROOT, wait_for

WAITS = "from runner.orphan import exit_with_parent; exit_with_parent(interval_s=0.05); print('up', flush=True); "


def start(code: str, **env: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT), **env},
        stdout=subprocess.PIPE,
        start_new_session=True,
    )


def sleeper() -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])


def test_a_child_lives_while_the_parent_does_and_ends_with_it() -> None:
    with sleeper() as parent, start(WAITS + "import time; time.sleep(60)", **{PARENT_PID: str(parent.pid)}) as child:
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(0.5)
        assert child.poll() is None
        parent.kill()  # not collected yet: a zombie counts as gone
        assert child.wait(10) != 0


def test_a_child_whose_parent_is_gone_already_ends() -> None:
    with sleeper() as parent:
        parent.kill()
    with start(WAITS + "import time; time.sleep(60)", **{PARENT_PID: str(parent.pid)}) as child:
        assert child.wait(10) != 0


def test_what_the_child_started_ends_too(tmp_path: Path) -> None:
    started = tmp_path / "pids"
    code = WAITS + (
        "import subprocess, sys, time, pathlib; nap = [sys.executable, '-c', 'import time; time.sleep(60)']; "
        "naps = [subprocess.Popen(nap), subprocess.Popen(nap, start_new_session=True)]; "
        f"pathlib.Path({str(started)!r}).write_text(' '.join(str(nap.pid) for nap in naps)); time.sleep(60)"
    )
    with sleeper() as parent, start(code, **{PARENT_PID: str(parent.pid), RUN_ID: "test-orphan"}) as child:
        wait_for(lambda: started.exists() and len(started.read_text().split()) == 2)
        naps = [psutil.Process(int(pid)) for pid in started.read_text().split()]
        parent.kill()
        child.wait(10)
    wait_for(lambda: not any(map(alive, naps)))


def test_without_a_parent_named_nothing_is_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PARENT_PID, raising=False)
    before = threading.active_count()
    exit_with_parent()
    assert threading.active_count() == before


def test_a_second_call_starts_no_second_thread() -> None:
    code = (
        "import threading; from runner.orphan import exit_with_parent; exit_with_parent(); exit_with_parent(); "
        "print(threading.active_count())"
    )
    with start(code, **{PARENT_PID: str(os.getpid())}) as child:
        assert child.stdout is not None
        assert child.stdout.read() == b"2\n"
