"""Helpers for the tests of supervision: the small launcher, and which processes of a run are still there."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from runner import launch
from runner.orphan import alive
from runner.spec import RunSpec

ROOT = Path(__file__).parents[2]
CHILDREN = "tests.runner.children"
MARKER = "DSPLAN_TEST_MARKER"


def spec(ranks: int = 1) -> RunSpec:
    return RunSpec(model={}, ds_config={}, sequence_length=8, gpus=ranks)


def use_small_launcher(patch: pytest.MonkeyPatch) -> None:
    """Start the ranks with tests.runner.children.launcher in the place of DeepSpeed's, which imports torch twice."""

    def command(spec: RunSpec, output_dir: Path, module: str, _port: int) -> list[str]:
        launcher = [sys.executable, "-m", f"{CHILDREN}.launcher", str(spec.gpus)]
        return [*launcher, "runner.child", module, str(output_dir / "spec.json"), str(output_dir)]

    patch.setattr(launch, "_command", command)


def run(module: str, output_dir: Path, ranks: int = 1, timeout_s: float = 60, **options: Any) -> list[dict[str, Any]]:
    options.setdefault("on_progress", lambda _: None)
    return launch.run(spec(ranks), output_dir, timeout_s=timeout_s, module=f"{CHILDREN}.{module}", **options)


def running(marker: str) -> list[list[str]]:
    """The command lines of the processes that inherited ``marker``, this one left out."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARKER) == marker and process.pid != psutil.Process().pid and alive(process):
                found.append(process.cmdline())
        except (psutil.Error, OSError):
            continue
    return found


def wait_for(condition: Callable[[], object], limit_s: float = 30.0) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)
