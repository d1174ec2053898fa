"""What the allocator of a real GPU was asked for in one case: ``python -m tests.gpu.history NAME OUTPUT.jsonl.gz``.

Each rank runs the steps of ``verify`` in a process of its own, rank 0 in this one, with
``torch.cuda.memory._record_memory_history``. What rank 0 asked for is kept, a line for each operation: what was done,
bytes, address, stream, and the lines of Python that asked for it, innermost first. With ``--marks`` a tensor of MARK
bytes is asked for where a phase begins, and calls after which more host memory was pinned than before are written, too.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from dsplan.dsconfig.emit import emit
from dsplan.hardware import Cluster
from runner.launch import free_port
from runner.spec import RunSpec
from tests.gpu.cases import SETS, Case
from tests.gpu.hf_cases import HF

ENTRIES = 3_000_000
MARK = 4097  # bytes of a tensor that is asked for where a phase begins, so that it can be found
FRAMES = 8
#: Functions of torch's C++ that can pin host memory.
PINNING = {
    "empty",
    "empty_strided",
    "empty_like",
    "zeros",
    "zeros_like",
    "pin_memory",
    "to",
    "_to_copy",
    "copy_",
    "cpu",
}


class Pinned:
    """A profiler of Python: after each call of PINNING, what torch's pinned pool holds, if it has grown."""

    def __init__(self) -> None:
        self.lines: list[list[Any]] = []
        self.bytes = 0

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        if event != "c_return" or getattr(argument, "__name__", "") not in PINNING:
            return
        import torch

        now = int(torch.cuda.host_memory_stats().get("allocated_bytes.current", 0))
        if now > self.bytes:
            self.lines.append(["pinned", now, now - self.bytes, argument.__name__, _stack(frame)])
        self.bytes = now


def _stack(frame: FrameType | None) -> list[str]:
    found: list[str] = []
    while frame is not None and len(found) < 2 * FRAMES:
        code = frame.f_code
        found.append(f"{'/'.join(code.co_filename.split('/')[-3:])}:{frame.f_lineno}:{code.co_name}")
        frame = frame.f_back
    return found


def specification(case: Case, steps: int) -> RunSpec:
    """What ``verify`` would run."""
    model = case.model_shape()
    return RunSpec(
        model=model.to_config(),
        ds_config=emit(case.plan(), model, Cluster(gpus_per_node=case.gpus)),
        sequence_length=case.sequence_length,
        activation_checkpointing=case.checkpointing,
        device="cuda",
        gpus=case.gpus,
        steps=steps,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("output", type=Path)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--marks", action="store_true", help="mark where phases begin, and say what pins host memory")
    arguments = parser.parse_args()
    cases = {case.name: case for cases in (*SETS.values(), HF) for case in cases}
    if arguments.name not in cases:
        parser.error(f"no case is named {arguments.name}")
    case = cases[arguments.name]
    rank = int(os.environ.setdefault("RANK", "0"))
    os.environ.setdefault("MASTER_PORT", str(free_port()))
    os.environ.update(LOCAL_RANK=str(rank), WORLD_SIZE=str(case.gpus), MASTER_ADDR="127.0.0.1", DS_ACCELERATOR="cuda")
    others = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.gpu.history", *sys.argv[1:]], env=os.environ | {"RANK": str(other)}
        )
        for other in (range(1, case.gpus) if rank == 0 else ())
    ]
    try:
        kept = recorded(case, arguments.steps, rank, arguments.marks)
    finally:
        for other in others:
            other.wait(timeout=60)
    if rank == 0:
        with gzip.open(arguments.output, "wt", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in kept)


def recorded(case: Case, steps: int, rank: int, marks: bool) -> list[Any]:
    """The lines of one rank: a head, what was pinned, and the device's operations."""
    import torch
    import torch._dynamo

    from runner.train import Reporter, train

    pinned = Pinned()
    torch.cuda.set_device(rank)
    torch.cuda.memory._record_memory_history(max_entries=ENTRIES, stacks="python")
    if marks:
        _mark_phases(pinned)
        sys.setprofile(pinned)
    record = train(specification(case, steps), Reporter(Path(tempfile.mkdtemp()), rank))
    sys.setprofile(None)
    trace = torch.cuda.memory._snapshot()["device_traces"][rank]
    peaks = [{name: phase["peak_bytes"] for name, phase in step["phases"].items()} for step in record["steps"]]
    print(f"{case.name}: {len(trace)} operations, peaks of the phases {peaks}", flush=True)
    head = {key: record[key] for key in ("versions", "device", "init", "host")} | {"case": case.name, "peaks": peaks}
    return [head, *pinned.lines, *lines(trace)]


def _mark_phases(pinned: Pinned) -> None:
    import torch

    from runner.probe import Probe

    begin = Probe.phase

    def marked(probe: Probe, name: str) -> Any:
        pinned.lines.append(["phase", name, pinned.bytes, torch.cuda.memory_allocated()])
        torch.empty(MARK, dtype=torch.uint8, device="cuda")
        return begin(probe, name)

    Probe.phase = marked  # type: ignore[method-assign]


def lines(trace: list[dict[str, Any]]) -> Iterator[list[Any]]:
    for entry in trace:
        frames = [
            f"{'/'.join(frame['filename'].split('/')[-3:])}:{frame['line']}:{frame['name']}"
            for frame in entry.get("frames", ())[:FRAMES]
        ]
        yield [entry["action"], entry["size"], entry["addr"], entry["stream"], frames]


if __name__ == "__main__":
    main()
