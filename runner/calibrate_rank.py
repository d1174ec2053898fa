"""One rank of a calibration: ``python -m runner.calibrate_rank DEVICE BEGUN SECONDS OUTPUT TURN [NVME_FOLDER]``.

Alone it measures the device, its links to the host and the engine; with others the collectives, and the engine again.
Having imported what it needs it waits for the file TURN. SECONDS count from BEGUN, a time of ``time.monotonic``, which
on one machine is the same for all processes. Rank 0 writes OUTPUT, whole or not at all.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.orphan import exit_with_parent
from runner.spec import RunSpec

if TYPE_CHECKING:
    from runner.calibrate_kernels import Bench

_POLL_S = 0.05
#: What the first engine imports, for seconds (deepspeed/runtime/zero/utils.py, is_zero_supported_optimizer).
_IMPORTED_LATE = "deepspeed.runtime.zero.muon.muon_optimizer"


def main() -> None:
    """Measure and write; arguments as in the module's first line."""
    exit_with_parent()
    kind, begun, seconds = sys.argv[1], float(sys.argv[2]), float(sys.argv[3])
    output, turn = Path(sys.argv[4]), Path(sys.argv[5])
    folder = Path(sys.argv[6]) if len(sys.argv) > 6 else None
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    import deepspeed
    import torch
    import torch._dynamo  # zero.Init patches torch while dynamo would be imported inside it

    from runner.calibrate_kernels import Bench
    from runner.compiling import announce_compilation
    from runner.device import open_device

    _wait(turn, rank, world_size)
    device = open_device(RunSpec(model={}, ds_config={}, sequence_length=1, device=kind, gpus=world_size))
    announce_compilation(lambda text: print(text, flush=True) if text else None, back_to=lambda: "")  # noqa: T201
    torch.manual_seed(rank)
    deepspeed.init_distributed(dist_backend=device.backend, verbose=False)
    info = device.info()
    small = kind == "cpu"

    def bench(share: float | None) -> Bench:
        """For one part: its share of the time counts from now, so that a slow part takes nothing from the next.

        None: until all of the time is up.
        """
        largest = 2**20 if small else min(2**31, info.memory_bytes // 16)
        deadline = begun + seconds if share is None else time.monotonic() + share * seconds
        return Bench(device=device, largest=largest, deadline=deadline, small=small)

    failed: list[str] = []
    document: dict[str, Any] = {
        "device": {"kind": info.kind, "name": info.name, "memory_bytes": info.memory_bytes},
        "versions": {"torch": torch.__version__, "deepspeed": deepspeed.__version__, **device.versions()},
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    }

    def keep(name: str, rows: Callable[[Bench], Iterable[dict[str, Any]]], share: float | None) -> None:
        started = time.monotonic()
        found = document.setdefault(name, [])
        before, within = len(found), bench(share)
        try:
            for row in rows(within):
                found.append(row)
        except Exception:
            if world_size > 1:  # the others wait in a collective: nothing can be done but to end
                raise
            traceback.print_exc()
            failed.append(name)
        if rank == 0:
            _write(output, document)  # first: the parent reads it as soon as it is told
            late = share is not None and within.out_of_time
            _say(name, len(found) - before, started, begun, late=late)
        if device.torch_device().type == "cuda":
            torch.cuda.empty_cache()

    half = "bf16" if small or torch.cuda.is_bf16_supported() else "fp16"
    bench(1.0).settle(half)
    for part in _parts(rank, world_size, half, folder, small=small):
        keep(*part)
    if failed:
        raise SystemExit(f"calibration: not measured to the end: {', '.join(failed)}; the errors are above")
    sys.stdout.flush()
    os._exit(0)  # nothing of value is left, and a process group may take its time to go


def _say(name: str, rows: int, started: float, begun: float, *, late: bool) -> None:
    """Tell the parent of a part (``runner.calibrate_ranks``)."""
    now = time.monotonic()
    left_out = "; its time was up: what is least needed is left out" if late else ""
    print(f"{name}: {rows} rows, {now - started:.1f} s, until {now - begun:.0f} s{left_out}", flush=True)  # noqa: T201


def _wait(turn: Path, rank: int, world_size: int) -> None:
    """Say that this rank is ready, and return once the file ``turn`` is there."""
    with suppress(ImportError):
        importlib.import_module(_IMPORTED_LATE)
    (turn.parent / f"ready-{world_size}-{rank}").touch()
    while not turn.exists():
        time.sleep(_POLL_S)


def _parts(
    rank: int, world_size: int, half: str, folder: Path | None, *, small: bool
) -> Iterator[tuple[str, Callable[[Bench], Iterable[dict[str, Any]]], float | None]]:
    """(table of the profile, what measures its rows, share of the time) of each part, in order.

    What the device's clock times comes first, beside a compiler where one is at work; last the engine, which takes what
    is left of the time, and more where it needs more.
    """
    from runner import calibrate_engine, calibrate_kernels, calibrate_links

    engine = partial(calibrate_engine.engine_steps, world_size=world_size)
    if world_size > 1:
        _load_operators(rank)
        yield "collectives", partial(calibrate_links.collectives, world_size=world_size), 0.5
        yield "engine", engine, None
        return
    if small:  # the host's clock
        _load_operators(rank)
    for dtype in (half, "fp32"):
        yield "elementwise", partial(calibrate_kernels.elementwise, dtype=dtype), 0.06
        yield "linear", partial(calibrate_kernels.linear, dtype=dtype), 0.12
        yield "products", partial(calibrate_kernels.products, dtype=dtype), 0.03
        yield "fused_attention", partial(calibrate_kernels.fused_attention, dtype=dtype), 0.15
    if not small:
        _load_operators(rank)
    yield "host_link", calibrate_links.host_link, 0.08
    yield "launch", calibrate_kernels.launches, 1.0
    yield "optimizer", calibrate_kernels.updates, 0.03
    yield "host", calibrate_links.host_operators, 0.1
    if folder is not None:
        yield "drive", lambda _: [calibrate_links.drive(folder)], 1.0
    yield "engine", engine, None


def _load_operators(rank: int) -> None:
    """Load what is compiled at first use, before anything is timed with it.

    Where nobody has compiled it, one rank does; while another process does, they wait for that (``runner.compiling``).
    """
    import torch.distributed as dist

    from runner.calibrate_compile import NAMES, load

    for turn in (True, False):
        if (rank == 0) == turn:
            for name in NAMES:
                load(name)
        dist.barrier()


def _write(path: Path, document: dict[str, Any]) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(document), encoding="utf-8")
    temporary.replace(path)


if __name__ == "__main__":
    main()
