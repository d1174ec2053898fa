"""A short run: two tensors in forward, a pinned one, one freed in backward, and one that finds no room."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

MIB = 1 << 20


def _alloc(number: int, size: int, allocated: int, **more: Any) -> dict[str, Any]:
    event = {
        "event": number,
        "action": "alloc",
        "place": "device",
        "size_bytes": size,
        "requested_bytes": size,
        "dtype": "bfloat16",
        "stream": 0,
        "address": number * 64 * MIB,
        "allocated_bytes": allocated,
        "reserved_bytes": 40 * MIB,
        "module": "transformer.h.0",
        "operator": "mm.default",
        "function": "Block.forward",
        "where": "mingpt/model.py:12",
    }
    return {**event, **more}


def _begin(number: int, allocated: int) -> dict[str, Any]:
    levels = {"allocated_bytes": allocated, "reserved_bytes": 40 * MIB}
    return {"event": number, "action": "phase_begin", **levels}


def _end(number: int, step: str, phase: str, allocated: int) -> dict[str, Any]:
    return {**_begin(number, allocated), "action": "phase_end", "step": step, "phase": phase}


EVENTS: list[dict[str, Any]] = [
    _begin(10, 0),
    _end(0, "init", "init", 0),
    _begin(11, 0),
    _alloc(1, 20 * MIB, 20 * MIB),
    _alloc(2, 10 * MIB, 30 * MIB, stream=1, module="", function="", where="autograd"),
    _alloc(3, 4 * MIB, 30 * MIB, place="pinned", address=0),
    _alloc(4, 0, 30 * MIB),
    _end(5, "0", "forward", 30 * MIB),
    _begin(12, 30 * MIB),
    {
        "event": 6,
        "action": "free",
        "of": 1,
        "place": "device",
        "size_bytes": 20 * MIB,
        "allocated_bytes": 10 * MIB,
        "reserved_bytes": 40 * MIB,
    },
    _end(7, "0", "backward", 10 * MIB),
    {**_alloc(8, 0, 10 * MIB), "action": "oom", "requested_bytes": 99 * MIB},
]
for _key in ("place", "size_bytes", "dtype", "address"):
    del EVENTS[-1][_key]


def written(folder: Path) -> Path:
    """The file that the run would leave, its last line broken off."""
    path = folder / "left.jsonl"
    path.write_text("".join(json.dumps(event) + "\n" for event in EVENTS) + '{"event": 9, "act')
    return path
