"""Run a verification in a process of its own: the planner neither imports torch nor dies of the run.

``python -m runner`` is the child; it says what happens as JSON lines, and starts and ends DeepSpeed.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dsplan import child_process
from dsplan.child_process import supervised
from dsplan.errors import EXIT_BAD_INPUT, InputError, RunError

STDERR_NAME = "runner.log"


def run_verification(
    spec_path: Path, output_dir: Path, *, timeout_s: float, on_progress: Callable[[dict[str, Any]], None]
) -> list[dict[str, Any]]:
    """Run the RunSpec at ``spec_path`` and return the ranks' records, in rank order.

    ``on_progress`` is given each event of rank 0 as it comes, such as ``{"event": "step", "step": 2, "steps": 4}``.

    Raises:
        MissingExtraError: torch, deepspeed or psutil is not installed.
        InputError: the run refused what it was asked for; there is nothing in ``output_dir`` to look at.
        RunError: the run gave no records; its exit code says how it ended.
        KeyboardInterrupt: as it came, once the run has ended.
    """
    require_run_extra()
    spec_path, output_dir = spec_path.absolute(), output_dir.absolute()
    output_dir.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "runner", str(spec_path), str(output_dir), "--timeout", str(timeout_s)]
    with (output_dir / STDERR_NAME).open("wb") as errors, supervised(command, output_dir, errors) as process:
        last = _follow(process, on_progress)
    if last.get("event") == "done":
        return [json.loads(Path(path).read_text(encoding="utf-8")) for path in last["records"]]
    if last.get("event") == "failed":
        message, exit_code = str(last["message"]), int(last["exit_code"])
        raise InputError(message) if exit_code == EXIT_BAD_INPUT else RunError(message, exit_code)
    log = output_dir / STDERR_NAME
    tail = "".join(f"\n  | {line}" for line in log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])
    raise RunError(f"the runner broke off with exit code {process.returncode} and no result; its log is {log}{tail}")


def require_run_extra() -> None:
    """Raise MissingExtraError unless what a run needs is installed."""
    child_process.require_run_extra("a verification run")


def _follow(process: subprocess.Popen[bytes], on_progress: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Pass on the events until the runner closes its stdout; the last event, empty when it is not a result."""
    assert process.stdout is not None
    for line in process.stdout:
        try:
            event = json.loads(line)
        except ValueError:
            continue  # a library that prints is no reason to lose the run
        if not isinstance(event, dict):
            continue
        if event.get("event") in ("done", "failed"):
            return event
        on_progress(event)
    return {}
