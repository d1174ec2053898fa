"""What the allocator of a real GPU was asked for in one case: ``python -m tests.gpu.history NAME OUTPUT.jsonl.gz``.

One rank runs the steps of ``verify`` in this process, with ``torch.cuda.memory._record_memory_history``; a line for
each operation: what was done, bytes, address, stream, and the lines of Python that asked for it, innermost first.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dsplan.dsconfig.emit import emit
from dsplan.hardware import Cluster
from runner.launch import free_port
from runner.spec import RunSpec
from tests.gpu.cases import SETS, Case
from tests.gpu.hf_cases import HF

ENTRIES = 3_000_000
FRAMES = 6


def specification(case: Case, steps: int) -> RunSpec:
    """What ``verify`` would run, on one rank."""
    model = case.model_shape()
    return RunSpec(
        model=model.to_config(),
        ds_config=emit(case.plan(), model, Cluster(gpus_per_node=1)),
        sequence_length=case.sequence_length,
        activation_checkpointing=case.checkpointing,
        device="cuda",
        steps=steps,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("output", type=Path)
    parser.add_argument("--steps", type=int, default=3)
    arguments = parser.parse_args()
    case = next(case for cases in (*SETS.values(), HF) for case in cases if case.name == arguments.name)
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()))
    os.environ["DS_ACCELERATOR"] = "cuda"
    import torch

    from runner.train import Reporter, train

    torch.cuda.memory._record_memory_history(max_entries=ENTRIES, stacks="python")
    record = train(specification(case, arguments.steps), Reporter(Path(tempfile.mkdtemp()), 0))
    snapshot = torch.cuda.memory._snapshot()
    with gzip.open(arguments.output, "wt", encoding="utf-8") as file:
        file.write(json.dumps({"case": case.name, "versions": record["versions"], "device": record["device"]}) + "\n")
        for line in lines(snapshot):
            file.write(json.dumps(line) + "\n")
    peaks = [[phase["peak_bytes"] for phase in step["phases"].values()] for step in record["steps"]]
    print(f"{case.name}: {len(snapshot['device_traces'][0])} operations, peaks of the phases {peaks}", flush=True)


def lines(snapshot: dict[str, Any]) -> Iterator[list[Any]]:
    for entry in snapshot["device_traces"][0]:
        frames = [
            f"{'/'.join(frame['filename'].split('/')[-3:])}:{frame['line']}:{frame['name']}"
            for frame in entry.get("frames", ())[:FRAMES]
        ]
        yield [entry["action"], entry["size"], entry["addr"], entry["stream"], frames]


if __name__ == "__main__":
    main()
