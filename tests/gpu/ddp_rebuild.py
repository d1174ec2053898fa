"""Whether DDP's first bucket is still there when the others are made: a training loop that nobody measures or stops.

``python -m torch.distributed.run --nproc-per-node 2 -m tests.gpu.ddp_rebuild OUTPUT.json``

The reducer frees its first bucket, of all gradients, before it makes those of the second step (reducer.cpp,
rebuild_buckets). NCCL's process group may hold it: what an asynchronous collective was given is kept until a wait,
which DDP never asks for, or until the next collective after torch's watchdog has seen it done, which looks every
100 ms (ProcessGroupNCCL.cpp, workEnqueue). ``verify`` waits for the device at the ends of phases, and so gives the
watchdog time. Here nothing waits; each model is trained once so, and once with a pause before every pass.

On two H200 (torch 2.11, 2026-11-22) no forward pass of a second step was higher than that of the third, with and
without pauses (``tests/data/ddp_rebuild.json``).
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from dsplan.catalogue import preset
from dsplan.dsconfig.ddp import ddp_document
from dsplan.dsconfig.emit import emit
from dsplan.hardware import Cluster
from dsplan.plan import Plan
from dsplan.workload import Workload
from mingpt import GPT, GPTConfig
from runner.ddp import DdpEngine

STEPS = 5
PAUSE_S = 0.3
#: (model, micro batch, sequence).
MODELS = (("gpt2", 1, 128), ("gpt2-medium", 4, 1024), ("1.7B", 1, 128))


def train(name: str, micro_batch: int, sequence: int, *, pause_s: float) -> list[dict[str, int]]:
    """Of every step the most that was allocated in each phase, in bytes; nothing waits for the device."""
    shape = preset(name)
    workload = Workload(micro_batch_size=micro_batch, sequence_length=sequence, precision="bf16")
    plan = Plan(name="ddp", ddp=True, workload=workload)
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    model = GPT(GPTConfig.from_dict(shape.to_config()))
    document = ddp_document(plan, emit(plan, shape, Cluster(gpus_per_node=dist.get_world_size())))
    engine = DdpEngine(model, document, device)
    tokens = torch.randint(shape.vocab_size, (micro_batch, sequence), device=device)
    found: list[dict[str, int]] = []

    def peak(phase: str) -> None:
        found[-1][phase] = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)

    for _ in range(STEPS):
        if pause_s:
            torch.cuda.synchronize(device)
            time.sleep(pause_s)
        found.append({})
        torch.cuda.reset_peak_memory_stats(device)
        loss: Any = engine(tokens, tokens)
        peak("forward")
        engine.backward(loss)
        del loss
        peak("backward")
        engine.step()
        peak("step")
    torch.cuda.synchronize(device)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl")
    rows = []
    for name, micro_batch, sequence in MODELS:
        for pause_s in (0.0, PAUSE_S):
            started = time.perf_counter()
            steps = train(name, micro_batch, sequence, pause_s=pause_s)
            gc.collect()
            torch.cuda.empty_cache()
            row = {
                "model": name,
                "micro_batch_size": micro_batch,
                "sequence_length": sequence,
                "pause_s": pause_s,
                "ranks": dist.get_world_size(),
                "bucket_bytes": 4 * preset(name).num_parameters,
                "versions": {"torch": torch.__version__},
                "device": torch.cuda.get_device_name(),
                "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
                "steps": steps,
            }
            rows.append(row)
            if dist.get_rank() == 0:
                seconds = time.perf_counter() - started
                print(f"{name} pause {pause_s} s, {seconds:.1f} s in all", flush=True)
                for phase in ("forward", "backward", "step"):
                    print(f"  {phase:8} MiB", [round(step[phase] / 2**20, 1) for step in steps], flush=True)
                arguments.output.write_text(json.dumps(rows), encoding="utf-8")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
