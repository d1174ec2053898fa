"""One rank of one rung: ``python -m runner.child tests.gpu.rung SPEC OUT`` is ``runner.train`` and more.

Beside the rank's record or failure it writes ``allocator-R.json``: how often the allocator gave back its cache and
tried again, and, where that did not help, what it held when it gave up.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import runner.device
from runner import train
from runner.device import Device
from runner.spec import RunSpec

_SEGMENTS = 12
_BLOCKS = 48


def main() -> int:
    death: dict[str, Any] = {}
    _watch(death)
    code = train.main()
    statistics: dict[str, Any] = {"death": death or None}
    with suppress(Exception):
        import torch

        found = torch.cuda.memory_stats()
        statistics |= {key: found[key] for key in ("num_alloc_retries", "num_ooms")}
    _write(statistics)
    return code


def _write(statistics: dict[str, Any]) -> None:
    rank = os.environ.get("RANK", "0")
    Path(sys.argv[2], f"allocator-{rank}.json").write_text(json.dumps(statistics), encoding="utf-8")


def _watch(death: dict[str, Any]) -> None:
    """Have the first out-of-memory error described, at the moment it happens, before anything is freed."""
    opened = runner.device.open_device

    def open_device(spec: RunSpec) -> Device:
        import torch

        device = opened(spec)
        attach = getattr(torch._C, "_cuda_attach_out_of_memory_observer", None)
        if spec.device == "cuda" and attach is not None:

            def observe(_device: int, requested: int, _allowed: int, free: int) -> None:
                if not death:
                    death.update(requested_bytes=requested, device_free_bytes=free)
                    with suppress(Exception):
                        death.update(_describe(torch))
                    _write({"death": death})  # at once: what comes after may take long, or be ended

            with suppress(Exception):
                torch.cuda.init()  # type: ignore[no-untyped-call]
                attach(observe)
        return device

    runner.device.open_device = open_device


def _describe(torch: Any) -> dict[str, Any]:
    statistics = torch.cuda.memory_stats()
    segments = torch.cuda.memory_snapshot()
    partly = [segment for segment in segments if 0 < segment["active_size"] < segment["total_size"]]
    partly.sort(key=lambda segment: segment["active_size"] - segment["total_size"])
    return {
        "allocated_bytes": statistics["allocated_bytes.all.current"],
        "active_bytes": statistics["active_bytes.all.current"],
        "reserved_bytes": statistics["reserved_bytes.all.current"],
        "inactive_split_bytes": statistics["inactive_split_bytes.all.current"],
        "small_reserved_bytes": statistics["reserved_bytes.small_pool.current"],
        "num_segments": len(segments),
        "num_unused_segments": sum(segment["active_size"] == 0 for segment in segments),
        # Of the segments that are partly in use, those with most to spare: + a block in use, - a free one.
        "partly_used": [
            {
                "stream": segment["stream"],
                "blocks": [
                    block["size"] if block["state"].startswith("active") else -block["size"]
                    for block in segment["blocks"][:_BLOCKS]
                ],
            }
            for segment in partly[:_SEGMENTS]
        ],
    }


if __name__ == "__main__":
    raise SystemExit(main())
