"""Ladder rung: how one rung ended, from what its ranks have written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.gpu.ladder import DIED, FAILED, SURVIVED


def is_over(folder: Path, ranks: int) -> bool:
    """Whether every rank has written its record."""
    return all((folder / f"rank-{rank}.json").exists() for rank in range(ranks))


def has_failed(folder: Path, ranks: int) -> bool:
    """Whether a rank has said that it failed."""
    return any((folder / f"failure-{rank}.json").exists() for rank in range(ranks))


def result(folder: Path, micro_batch_size: int, ranks: int, *, seconds: float, logs: list[Path]) -> dict[str, Any]:
    """What is kept of a rung: outcome, where it died, and what the ranks held."""
    found: dict[str, Any] = {"micro_batch_size": micro_batch_size, "seconds": round(seconds, 1)}
    records = [_read(folder / f"rank-{rank}.json") for rank in range(ranks)]
    failures = [(rank, _read(folder / f"failure-{rank}.json")) for rank in range(ranks)]
    found["ranks"] = [
        {**_peaks(record), "allocator": _read(folder / f"allocator-{rank}.json")} for rank, record in enumerate(records)
    ]
    if all(records):
        return {**found, "outcome": SURVIVED}
    for rank, failure in failures:
        if failure and failure.get("kind") == "out_of_memory":
            where = {"rank": rank, "phase": failure.get("phase"), "step": failure.get("step")}
            return {**found, "outcome": DIED, **where, "message": failure.get("message", "")}
    message = next((str(failure.get("message")) for _, failure in failures if failure), "no record and no failure")
    tail = [line for log in logs for line in log.read_text(errors="replace").splitlines()[-6:]]
    return {**found, "outcome": FAILED, "message": message, "log": tail[-12:]}


def _read(path: Path) -> dict[str, Any] | None:
    try:
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return document


def _peaks(record: dict[str, Any] | None) -> dict[str, Any]:
    """Per step the highest allocated and reserved bytes and the driver's; steps by phase."""
    if record is None:
        return {}

    def highest(phases: dict[str, Any]) -> list[int | None]:
        keys = ("peak_bytes", "peak_reserved_bytes", "device_bytes")
        return [max((phase.get(key) or 0 for phase in phases.values()), default=None) for key in keys]

    return {
        "device": record["device"],
        "versions": record["versions"],
        "init": highest({"init": record["init"]}),
        "steps": [highest(step["phases"]) for step in record["steps"]],
        "skipped": sum(bool(step["skipped"]) for step in record["steps"]),
    }
