"""Time configurations on this machine, in processes of their own: ``python -m runner.trials``."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsplan.child_process import require_run_extra, supervised
from dsplan.errors import EXIT_RUN_FAILED, RunError


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a run came to.

    Attributes:
        seconds: of one step, of the slowest rank; None when it failed.
        peak_allocated_bytes, peak_reserved_bytes: of the rank that took most; None when it failed, and reserved also
            where the device has no caching allocator.
        exit_code: how it failed; 0 when it did not.
        message: why, for people.
    """

    seconds: float | None = None
    peak_allocated_bytes: int | None = None
    peak_reserved_bytes: int | None = None
    device: str = ""
    versions: Mapping[str, str] | None = None
    exit_code: int = 0
    message: str = ""


def run_trials(
    specifications: Sequence[Mapping[str, Any]],
    folder: Path,
    *,
    timeout_s: float,
    on_progress: Callable[[dict[str, Any]], None],
) -> list[Outcome]:
    """Run each of ``specifications`` (``runner.spec.RunSpec`` as JSON) and say what it came to, in their order.

    Args:
        specifications: at least one.
        folder: where the logs are kept.
        timeout_s: of each run.
        on_progress: called with every event, which has the ``trial``'s number.

    Raises:
        MissingExtraError: torch, deepspeed or psutil is not installed.
        RunError: the runner itself broke off.
        KeyboardInterrupt: as it came, once the run has ended.
    """
    require_run_extra("a timed run")
    path, log = folder / "trials.json", folder / "trials.log"
    path.write_text(json.dumps([dict(one) for one in specifications]), encoding="utf-8")
    command = [*_command(), str(path.absolute()), str(folder.absolute()), "--timeout", str(timeout_s)]
    outcomes: dict[int, Outcome] = {}
    with log.open("wb") as errors, supervised(command, folder, errors) as process:
        assert process.stdout is not None
        for line in process.stdout:
            event = _event(line)
            if event is None:
                continue
            if event.get("event") in ("measured", "failed"):
                outcomes[event["trial"]] = _outcome(event)
            on_progress(event)
    if len(outcomes) < len(specifications):
        said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-15:]
        tail = "".join(f"\n  | {line}" for line in said)
        raise RunError(f"the runner broke off with exit code {process.returncode}:{tail}", EXIT_RUN_FAILED)
    return [outcomes[index] for index in range(len(specifications))]


def _command() -> list[str]:
    return [sys.executable, "-m", "runner.trials"]


def _event(line: bytes) -> dict[str, Any] | None:
    """The event of a line; None for what a library printed."""
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and isinstance(event.get("trial"), int) else None


def _outcome(event: Mapping[str, Any]) -> Outcome:
    if event["event"] == "failed":
        return Outcome(exit_code=event["exit_code"], message=str(event["message"]).splitlines()[0])
    records = event["records"]
    reserved = [record["peak_reserved_bytes"] for record in records if record["peak_reserved_bytes"] is not None]
    return Outcome(
        seconds=max(record["seconds"] for record in records),
        peak_allocated_bytes=max(record["peak_allocated_bytes"] for record in records),
        peak_reserved_bytes=max(reserved, default=None),
        device=records[0]["device"]["name"],
        versions=records[0]["versions"],
    )
