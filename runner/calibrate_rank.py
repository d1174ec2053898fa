"""One rank of a calibration: ``python -m runner.calibrate_rank DEVICE SECONDS OUTPUT [NVME_FOLDER]``.

Alone it measures the device, its links to the host and the engine; with others the collectives, and the engine again.
Rank 0 writes OUTPUT, whole or not at all.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from runner.orphan import exit_with_parent
from runner.spec import RunSpec


def main() -> None:
    """Measure and write; arguments as in the module's first line."""
    exit_with_parent()
    kind, seconds, output = sys.argv[1], float(sys.argv[2]), Path(sys.argv[3])
    folder = Path(sys.argv[4]) if len(sys.argv) > 4 else None
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    import torch
    import torch._dynamo  # zero.Init patches torch while dynamo would be imported inside it

    from runner.device import open_device

    device = open_device(RunSpec(model={}, ds_config={}, sequence_length=1, device=kind, gpus=world_size))
    import deepspeed

    from runner import calibrate_engine, calibrate_kernels, calibrate_links
    from runner.calibrate_kernels import Bench

    torch.manual_seed(rank)
    deepspeed.init_distributed(dist_backend=device.backend, verbose=False)
    info = device.info()
    small = kind == "cpu"
    _load_operators(rank)

    def bench(share: float) -> Bench:
        """For one part: its share of the time counts from now, so that a slow part takes nothing from the next."""
        largest = 2**20 if small else min(2**31, info.memory_bytes // 16)
        return Bench(device=device, largest=largest, deadline=time.monotonic() + share * seconds, small=small)

    document: dict[str, Any] = {
        "device": {"kind": info.kind, "name": info.name, "memory_bytes": info.memory_bytes},
        "versions": {"torch": torch.__version__, "deepspeed": deepspeed.__version__, **device.versions()},
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    }

    def keep(name: str, rows: Callable[[Bench], Iterable[dict[str, Any]]], share: float) -> None:
        started = time.monotonic()
        document.setdefault(name, []).extend(rows(bench(share)))
        if rank == 0:
            print(f"{name}: {len(document[name])} rows, {time.monotonic() - started:.1f} s", flush=True)  # noqa: T201
            _write(output, document)
        if device.torch_device().type == "cuda":
            torch.cuda.empty_cache()

    engine = partial(calibrate_engine.engine_steps, world_size=world_size)
    if world_size == 1:
        half = "bf16" if small or torch.cuda.is_bf16_supported() else "fp16"
        keep("host_link", calibrate_links.host_link, 0.08)
        keep("launch", calibrate_kernels.launches, 1.0)
        keep("optimizer", calibrate_kernels.updates, 0.03)
        for dtype in (half, "fp32"):
            keep("elementwise", partial(calibrate_kernels.elementwise, dtype=dtype), 0.06)
            keep("linear", partial(calibrate_kernels.linear, dtype=dtype), 0.12)
            keep("products", partial(calibrate_kernels.products, dtype=dtype), 0.03)
            keep("fused_attention", partial(calibrate_kernels.fused_attention, dtype=dtype), 0.09)
        keep("host", calibrate_links.host_operators, 0.1)
        if folder is not None:
            keep("drive", lambda _: [calibrate_links.drive(folder)], 1.0)
        keep("engine", engine, 0.6)
    else:
        keep("collectives", partial(calibrate_links.collectives, world_size=world_size), 0.5)
        keep("engine", engine, 1e6)  # no rank may stop before the others


def _load_operators(rank: int) -> None:
    """Compile what is compiled at first use, before anything is timed; one rank does, the others find it."""
    import torch
    import torch.distributed as dist
    from deepspeed.ops.op_builder import CPUAdamBuilder, FusedAdamBuilder

    for turn in (True, False):
        if (rank == 0) == turn:
            CPUAdamBuilder().load(verbose=False)
            if torch.cuda.is_available():
                FusedAdamBuilder().load(verbose=False)
        dist.barrier()


def _write(path: Path, document: dict[str, Any]) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(document), encoding="utf-8")
    temporary.replace(path)


if __name__ == "__main__":
    main()
