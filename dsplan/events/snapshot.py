"""The events as a memory snapshot of torch's, which https://pytorch.org/memory_viz draws.

The format is that of ``torch.cuda.memory._snapshot()`` (torch/csrc/cuda/memory_snapshot.cpp), as
``torch/cuda/_memory_viz.py`` reads it. Of time a dry run knows only the order: an event is a microsecond.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from dsplan.events.read import Event

_DEVICE = "device"
#: Added to every address: the viewer takes address 0 for none.
_BASE = 1 << 40


def snapshot(events: Iterable[Event]) -> dict[str, Any]:
    """``device_traces`` and ``segments`` of one device; host memory is not in it."""
    trace: list[dict[str, Any]] = []
    live: dict[int, dict[str, Any]] = {}
    for event in events:
        action, number = event["action"], event["event"]
        if event.get("place", _DEVICE) != _DEVICE or event.get("size_bytes") == 0:
            continue
        if action == "alloc":
            entry = _entry(
                "alloc", number, _BASE + event["address"], event["size_bytes"], event["stream"], _frames(event)
            )
            trace.append(entry)
            live[number] = entry
        elif action == "free":
            taken = live.pop(event["of"])
            for done in ("free_requested", "free_completed"):
                trace.append(_entry(done, number, taken["addr"], taken["size"], taken["stream"], []))
        elif action == "oom":
            entry = _entry("oom", number, 0, event["requested_bytes"], event["stream"], _frames(event))
            trace.append({**entry, "device_free": 0})
    return {
        "segments": [_segment(entry) for entry in sorted(live.values(), key=lambda entry: entry["addr"])],
        "device_traces": [trace],
        "allocator_settings": {},
        "external_annotations": [],
    }


def _entry(action: str, number: int, address: int, size: int, stream: int, frames: list[Any]) -> dict[str, Any]:
    return {"action": action, "addr": address, "size": size, "stream": stream, "frames": frames, "time_us": number}


def _frames(event: Event) -> list[dict[str, Any]]:
    """The operator, then the line that called it, then the module: innermost first, as torch has them."""
    file, _, line = event["where"].rpartition(":")
    frames = [{"name": event["operator"], "filename": file or event["where"], "line": int(line) if file else 0}]
    if event["function"]:
        frames.append({**frames[0], "name": event["function"]})
    if event["module"]:
        frames.append({"name": event["module"], "filename": "module", "line": 0})
    return frames


def _segment(entry: dict[str, Any]) -> dict[str, Any]:
    """What is live at the end, each as a segment of its own: the viewer needs only the blocks."""
    size = entry["size"]
    block = {
        "address": entry["addr"],
        "size": size,
        "requested_size": size,
        "state": "active_allocated",
        "frames": entry["frames"],
    }
    return {
        "device": 0,
        "address": entry["addr"],
        "total_size": size,
        "allocated_size": size,
        "active_size": size,
        "requested_size": size,
        "stream": entry["stream"],
        "segment_type": "large",
        "segment_pool_id": (0, 0),
        "is_expandable": False,
        "frames": [],
        "blocks": [block],
    }
