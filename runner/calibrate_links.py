"""What joins devices, host and drive: copies over PCIe, Adam on the CPU, collectives, a drive's two rates."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch

from runner.calibrate_kernels import Bench, Row

_COLLECTIVES = ("all_reduce", "all_gather", "reduce_scatter", "broadcast", "reduce")


def host_link(bench: Bench) -> Iterator[Row]:
    """Copies between host and device (CUDA): pinned and pageable, each way."""
    if bench.device.torch_device().type != "cuda":
        return
    for size in (2**14, 2**18, 2**22, 2**26, 2**28):
        there = torch.empty(size, dtype=torch.uint8, device=bench.device.torch_device())
        for pinned in (True, False):
            if bench.out_of_time:
                return
            here = torch.empty(size, dtype=torch.uint8, pin_memory=pinned)
            here.zero_()
            for direction, target, source in (("to_device", there, here), ("to_host", here, there)):

                def copy(target: torch.Tensor = target, source: torch.Tensor = source, wait: bool = not pinned) -> None:
                    target.copy_(source, non_blocking=not wait)

                yield {"direction": direction, "pinned": pinned, "bytes": size, "seconds": bench.seconds(copy)}


def host_operators(bench: Bench) -> Iterator[Row]:
    """The host's part of offload: DeepSpeedCPUAdam, scaling of gradients, the norm, a cast, by elements.

    With all threads that a lone rank has, and Adam also with one, which is what launchers leave that set
    OMP_NUM_THREADS to 1 (torch/distributed/run.py does when nobody else has).
    """
    threads = torch.get_num_threads()
    smallest, *others = (2**16, 2**18) if bench.small else (2**18, 2**22, 2**26)
    first = list(_host_operators(bench, smallest, threads))
    rows = [row for elements in others for row in _host_operators(bench, elements, threads)]
    # Where threads for all cores have just been started, small calls can take milliseconds: the shorter time counts.
    again = {row["operator"]: row["seconds"] for row in _host_operators(bench, smallest, threads)}
    yield from ({**row, "seconds": min(row["seconds"], again.get(row["operator"], row["seconds"]))} for row in first)
    yield from rows
    if threads > 1:
        torch.set_num_threads(1)
        try:
            yield from _host_operators(bench, 2**20 if bench.small else 2**24, 1)
        finally:
            torch.set_num_threads(threads)


def _host_operators(bench: Bench, elements: int, threads: int) -> Iterator[Row]:
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    if bench.out_of_time:
        return
    parameter = torch.nn.Parameter(torch.zeros(elements))
    parameter.grad = torch.zeros(elements)
    optimizer = DeepSpeedCPUAdam([parameter], lr=1e-4)
    calls: dict[str, Callable[[], object]] = {
        "cpu_adam": optimizer.step,
        "scale_": partial(parameter.grad.mul_, 0.5),
        "norm": partial(torch.linalg.vector_norm, parameter.grad),
        "cast": partial(parameter.data.to, torch.bfloat16),
        "copy_": partial(parameter.data.copy_, parameter.grad),
    }
    for name, call in calls.items():
        seconds = bench.seconds(call)
        yield {"operator": name, "elements": elements, "seconds": seconds, "threads": threads}


def collectives(bench: Bench, world_size: int) -> Iterator[Row]:
    """Collectives of DeepSpeed's over all ranks, by the bytes of the whole (not of a rank's part)."""
    import torch.distributed as dist

    device = bench.device.torch_device()
    sizes = (2**14, 2**20) if bench.small else (2**12, 2**16, 2**20, 2**23, 2**26, 2**29)
    for size in sizes:
        elements = size // 2 // world_size * world_size
        whole = torch.zeros(elements, dtype=torch.bfloat16, device=device)
        part = torch.zeros(elements // world_size, dtype=torch.bfloat16, device=device)
        calls: dict[str, Callable[[], object]] = {
            "all_reduce": partial(dist.all_reduce, whole),
            "all_gather": partial(dist.all_gather_into_tensor, whole, part),
            "reduce_scatter": partial(dist.reduce_scatter_tensor, part, whole),
            "broadcast": partial(dist.broadcast, whole, 0),
            "reduce": partial(dist.reduce, whole, 0),
        }
        for name in _COLLECTIVES:
            for _ in range(2):
                calls[name]()
            dist.barrier()
            bench.device.synchronize()
            repetitions = 3 if bench.small else 20 if size <= 2**26 else 5  # the same number on every rank
            begun = time.perf_counter()
            for _ in range(repetitions):
                calls[name]()
            bench.device.synchronize()
            seconds = (time.perf_counter() - begun) / repetitions
            yield {"operator": name, "world_size": world_size, "bytes": elements * 2, "seconds": seconds}


def drive(folder: Path, size: int = 2**28) -> Row:
    """Bytes per second of a drive: sequential, past the page cache as far as the system lets a process ask."""
    block = os.urandom(2**22)
    with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
        path = Path(file.name)
    try:
        begun = time.perf_counter()
        handle = os.open(path, os.O_WRONLY | os.O_TRUNC)
        for _ in range(size // len(block)):
            os.write(handle, block)
        os.fsync(handle)
        written = time.perf_counter() - begun
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)
        begun = time.perf_counter()
        handle = os.open(path, os.O_RDONLY)
        while os.read(handle, len(block)):
            pass
        os.close(handle)
        read = time.perf_counter() - begun
    finally:
        path.unlink(missing_ok=True)
    return {"write_bytes_per_s": size / written, "read_bytes_per_s": size / read, "bytes": size}
