"""One rank of a calibration: ``python -m runner.calibrate_rank DEVICE SECONDS OUTPUT [NVME_FOLDER]``.

Alone it measures the device, its links to the host and the engine; with others the collectives, and the engine again.
Rank 0 writes OUTPUT, whole or not at all.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.orphan import exit_with_parent
from runner.spec import RunSpec

if TYPE_CHECKING:
    from runner.calibrate_kernels import Bench


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

    from runner.calibrate_kernels import Bench
    from runner.compiling import announce_compilation

    announce_compilation(lambda text: print(text, flush=True) if text else None, back_to=lambda: "")  # noqa: T201
    torch.manual_seed(rank)
    deepspeed.init_distributed(dist_backend=device.backend, verbose=False)
    info = device.info()
    small = kind == "cpu"
    _load_operators(rank)

    def bench(share: float) -> Bench:
        """For one part: its share of the time counts from now, so that a slow part takes nothing from the next."""
        largest = 2**20 if small else min(2**31, info.memory_bytes // 16)
        return Bench(device=device, largest=largest, deadline=time.monotonic() + share * seconds, small=small)

    failed: list[str] = []
    document: dict[str, Any] = {
        "device": {"kind": info.kind, "name": info.name, "memory_bytes": info.memory_bytes},
        "versions": {"torch": torch.__version__, "deepspeed": deepspeed.__version__, **device.versions()},
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    }

    def keep(name: str, rows: Callable[[Bench], Iterable[dict[str, Any]]], share: float) -> None:
        started = time.monotonic()
        found = document.setdefault(name, [])
        try:
            for row in rows(bench(share)):
                found.append(row)
        except Exception:
            if world_size > 1:  # the others wait in a collective: nothing can be done but to end
                raise
            traceback.print_exc()
            failed.append(name)
        if rank == 0:
            _write(output, document)  # first: the parent reads it as soon as it is told
            print(f"{name}: {len(document[name])} rows, {time.monotonic() - started:.1f} s", flush=True)  # noqa: T201
        if device.torch_device().type == "cuda":
            torch.cuda.empty_cache()

    half = "bf16" if small or torch.cuda.is_bf16_supported() else "fp16"
    bench(1.0).settle(half)
    for name, rows, share in _parts(world_size, half, folder):
        keep(name, rows, share)
    if failed:
        raise SystemExit(f"calibration: not measured to the end: {', '.join(failed)}; the errors are above")


def _parts(
    world_size: int, half: str, folder: Path | None
) -> Iterator[tuple[str, Callable[[Bench], Iterable[dict[str, Any]]], float]]:
    """(table of the profile, what measures its rows, share of the time) of each part, in order."""
    from runner import calibrate_engine, calibrate_kernels, calibrate_links

    engine = partial(calibrate_engine.engine_steps, world_size=world_size)
    if world_size > 1:
        yield "collectives", partial(calibrate_links.collectives, world_size=world_size), 0.5
        yield "engine", engine, 1e6  # no rank may stop before the others
        return
    yield "host_link", calibrate_links.host_link, 0.08
    yield "launch", calibrate_kernels.launches, 1.0
    yield "optimizer", calibrate_kernels.updates, 0.03
    for dtype in (half, "fp32"):
        yield "elementwise", partial(calibrate_kernels.elementwise, dtype=dtype), 0.06
        yield "linear", partial(calibrate_kernels.linear, dtype=dtype), 0.12
        yield "products", partial(calibrate_kernels.products, dtype=dtype), 0.03
        yield "fused_attention", partial(calibrate_kernels.fused_attention, dtype=dtype), 0.15
    yield "host", calibrate_links.host_operators, 0.1
    if folder is not None:
        yield "drive", lambda _: [calibrate_links.drive(folder)], 1.0
    yield "engine", engine, 0.9


def _load_operators(rank: int) -> None:
    """Compile what is compiled at first use, before anything is timed; one rank does, the others find it."""
    import torch.distributed as dist
    from deepspeed.ops.op_builder import CPUAdamBuilder, FusedAdamBuilder

    for turn in (True, False):
        if (rank == 0) == turn:
            CPUAdamBuilder().load(verbose=False)
            FusedAdamBuilder().load(verbose=False)  # of the CPU too, where it is what steps on the CPU use
        dist.barrier()


def _write(path: Path, document: dict[str, Any]) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(document), encoding="utf-8")
    temporary.replace(path)


if __name__ == "__main__":
    main()
