"""How long each thing took, as ``python -m tests.bench`` keeps it and docs/accuracy.md shows it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from platform import python_version
from typing import Any

from dsplan.files import write_text

SPEEDS = Path(__file__).parents[1] / "data" / "speed.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """Processor time of one thing: the least of ``repeats``, which other work on the machine disturbs least."""

    what: str
    seconds: float
    repeats: int
    target_seconds: float | None = None


def write_speeds(speeds: Mapping[str, Speed], path: Path = SPEEDS) -> None:
    """Keep them with date, machine and versions."""
    document = {
        "about": "Written by python -m tests.bench; then run python -m tests.accuracy.",
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "processor": _processor(),
        "versions": {"python": python_version(), **{name: version(name) for name in ("torch", "deepspeed")}},
        "speeds": [asdict(each) for each in speeds.values()],
    }
    write_text(path, json.dumps(document, indent=1) + "\n", force=True)


def _processor() -> str:
    """The model's name, where the kernel says it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return "unknown"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def read_speeds(path: Path = SPEEDS) -> dict[str, Any]:
    """What is kept, ``speeds`` as :class:`Speed`; without the file, none."""
    if not path.exists():
        return {"speeds": []}
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return {**document, "speeds": [Speed(**each) for each in document["speeds"]]}


def section(path: Path = SPEEDS) -> str:
    """The section of docs/accuracy.md; empty where nothing was timed."""
    found = read_speeds(path)
    if not found["speeds"]:
        return ""
    versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    lines = [
        "## Speed",
        "",
        "Processor time on one core, the least of several, by `python -m tests.bench --dry-run` on "
        f"{found['created'][:10]}:",
        f"{found['processor']}, {versions}. The model has 96 layers of gpt2-xl's width; a plan is one walk of all",
        "phases, the first time (nothing cached) and again, as the ladder of micro batches makes it.",
        "",
        "| what | processor time | asked for |",
        "|---|---|---|",
    ]
    for each in found["speeds"]:
        lines.append(f"| {each.what} | {readable(each.seconds)} | {_verdict(each)} |")
    return "\n".join([*lines, ""])


def _verdict(speed: Speed) -> str:
    if speed.target_seconds is None:
        return ""
    met = "met" if speed.seconds <= speed.target_seconds else "**not met**"
    return f"{1e3 * speed.target_seconds:g} ms: {met}"


def readable(seconds: float) -> str:
    """In the unit that people read it in."""
    if seconds >= 1:
        return f"{seconds:.1f} s"
    return f"{1e3 * seconds:.2f} ms" if seconds >= 1e-4 else f"{1e6 * seconds:.1f} µs"
