"""Where a step's time goes on a GPU: ``python -m tests.gpu.regret_kernels OUTPUT.json [--seconds S]``.

For a few settings and strategies of the regret measurement, one engine each: the step without a profiler, what the host
needs for each phase where nobody waits, and one step under torch's profiler: every kernel with its calls and seconds,
how long the device was busy, clocks and power meanwhile. To hold kernels of a profile against those of real steps.
``--tiny --device cpu`` tries the machinery.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from dsplan.dsconfig.emit import emit
from runner.launch import free_port
from runner.spec import RunSpec
from tests.gpu.header import header
from tests.gpu.regret_settings import SETTINGS, TINY

#: Setting, strategy, micro batch: eager and fused attention, paced by the device and by the host, long and short.
CASES = (
    ("medium-n1-16", "zero1-ckpt", 16),
    ("xl-sdpa-n1-40", "zero1-ckpt", 16),
    ("1.7B-n1-80", "zero1", 128),
    ("xl-sdpa-n1-40", "zero3-ckpt", 8),
    ("medium-n1-16", "zero2-ckpt", 8),
    ("large-sdpa-n1-24", "zero0-ckpt", 16),
)
TINY_CASES = (("tiny-n1-0", "zero0", 4), ("tiny-n1-0", "zero3-ckpt", 4))
TIMES = ("seconds", "forward_s", "backward_s", "step_s")
WARM_S = 3.0  # of steps before anything is noted: clocks settle
_QUERY = "clocks.sm,clocks.mem,power.draw,temperature.gpu,clocks_throttle_reasons.active"


def state() -> str:
    """Clocks, power, temperature and why the clock is what it is, of the first GPU; empty where nobody says."""
    command = ["nvidia-smi", f"--query-gpu={_QUERY}", "--format=csv,noheader", "-i", "0"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=False).stdout.strip()
    except OSError:
        return ""


def busy_seconds(spans: list[tuple[float, float]]) -> float:
    """Seconds that at least one of ``spans`` (begin, end, microseconds) covers."""
    total, end = 0.0, float("-inf")
    for begin, until in sorted(spans):
        total += max(0.0, until - max(begin, end))
        end = max(end, until)
    return total * 1e-6


def profiled(engine: Any, batch: tuple[Any, Any], *, cuda: bool) -> dict[str, Any]:
    """One step under the profiler: kernels by phase and name as [name, calls, seconds], and the busy time.

    Each phase in a profile of its own that has the device's side only: the host's would take minutes to read.
    """
    from torch.profiler import ProfilerActivity, profile

    found: dict[str, Any] = {}
    loss: list[Any] = []

    def backward() -> None:
        engine.engine.backward(loss.pop())

    for phase, call in (
        ("forward", lambda: loss.append(engine.engine(*batch))),
        ("backward", backward),
        ("step", engine.engine.step),
    ):
        with profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as recorded:
            begun = time.perf_counter()
            call()
            engine.synchronize()
            seconds = time.perf_counter() - begun
        events = [one for one in recorded.events() if not getattr(one, "is_user_annotation", False)]
        kernels: dict[str, list[float]] = defaultdict(lambda: [0, 0.0])
        for event in events:
            kernels[event.name][0] += 1
            kernels[event.name][1] += (event.time_range.end - event.time_range.start) * 1e-6
        rows = sorted(([name[:120], *values] for name, values in kernels.items()), key=lambda row: -row[2])
        spans = [(event.time_range.start, event.time_range.end) for event in events]
        found[phase] = {"seconds": seconds, "busy_s": busy_seconds(spans), "kernels": rows[:60]}
    return found


def asked(engine: Any, batch: tuple[Any, Any], steps: int) -> dict[str, float]:
    """Seconds after which the host came back from each phase, without a wait between them: medians."""
    rows = []
    for _ in range(steps):
        marks = [time.perf_counter()]
        loss = engine.engine(*batch)
        marks.append(time.perf_counter())
        engine.engine.backward(loss)
        marks.append(time.perf_counter())
        del loss
        engine.engine.step()
        marks.append(time.perf_counter())
        rows.append([after - before for before, after in itertools.pairwise(marks)])
    engine.synchronize()
    columns = zip(*rows, strict=True)
    return dict(zip(TIMES[1:], map(statistics.median, columns), strict=True))


def measured(name: str, strategy: str, size: int, device: Any, *, tiny: bool) -> dict[str, Any]:
    """One case."""
    import torch

    from runner.timed_engine import TimedEngine

    setting = next(one for one in (*SETTINGS, *TINY) if one.name == name)
    plan = next(plan for plan in setting.plans(size) if plan.name == strategy)
    cuda = device.torch_device().type == "cuda"
    engine = TimedEngine(
        setting.model_shape().to_config(),
        emit(plan, setting.model_shape(), setting.cluster),
        checkpointing=plan.workload.activation_checkpointing,
        device=device,
        limit=(lambda: device.limit(setting.cap_bytes)) if cuda else None,
    )
    found: dict[str, Any] = {"setting": name, "strategy": strategy, "micro_batch_size": size}
    try:
        engine.time(size, setting.sequence_length, warmup=2, steps=1)
        begun = time.monotonic()
        while time.monotonic() - begun < (0.1 if tiny else WARM_S):
            engine.time(size, setting.sequence_length, warmup=0, steps=2)
        times = [engine.time(size, setting.sequence_length, warmup=0, steps=3) for _ in range(3)]
        found["state"] = state()
        for phase in TIMES:
            found[phase] = statistics.median(getattr(one, phase) for one in times)
        batch = engine.batch(size, setting.sequence_length)
        found["asked"] = asked(engine, batch, 4)
        lone = engine.batch(1, setting.sequence_length)
        asked(engine, lone, 1)
        found["asked_of_one"] = asked(engine, lone, 4)
        found["profiled"] = profiled(engine, batch, cuda=cuda)
        if cuda:
            statistics_ = torch.cuda.memory_stats()
            found["num_alloc_retries"] = statistics_["num_alloc_retries"]
    finally:
        if cuda:
            torch.cuda.set_per_process_memory_fraction(1.0)
        engine.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    parser.add_argument("--seconds", type=float, default=100)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args()
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()))
    os.environ["DS_ACCELERATOR"] = arguments.device
    import torch
    import torch._dynamo

    from runner.device import open_device

    device = open_device(RunSpec(model={}, ds_config={}, sequence_length=1, device=arguments.device, gpus=1))
    import deepspeed

    deepspeed.init_distributed(dist_backend=device.backend, verbose=False)
    begun = time.monotonic()
    versions = {"torch": torch.__version__, "deepspeed": deepspeed.__version__, **device.versions()}
    document: dict[str, Any] = header("python -m tests.gpu.regret_kernels", device.info().name, versions)
    document |= {"idle": state(), "cases": []}
    for name, strategy, size in TINY_CASES if arguments.tiny else CASES:
        if time.monotonic() - begun > arguments.seconds:
            break
        try:
            row = measured(name, strategy, size, device, tiny=arguments.tiny)
        except Exception as error:
            row = {"setting": name, "strategy": strategy, "error": f"{type(error).__name__}: {str(error)[:300]}"}
        document["cases"].append(row)
        arguments.output.write_text(json.dumps(document) + "\n", encoding="utf-8")
        shown = {phase: round(part["busy_s"] * 1e3, 1) for phase, part in row.get("profiled", {}).items()}
        times = [
            round(1e3 * row[phase], 1) for phase in ("seconds", "forward_s", "backward_s", "step_s") if phase in row
        ]
        print(f"{name} {strategy} x {size}: ms {times} busy {shown} {row.get('state', row.get('error'))}", flush=True)
    print(f"{len(document['cases'])} cases in {time.monotonic() - begun:.0f} s", flush=True)
    sys.stdout.flush()
    os._exit(0)  # nothing of value is left, and a process group may take its time to go


if __name__ == "__main__":
    main()
