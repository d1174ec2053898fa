"""How far measured steps scatter, and what the host waits for: ``python -m tests.gpu.regret_repeats OUTPUT.json``.

Strategies of one setting take turns in a process, in both orders in several: each step by itself, after some that warm
up. Where two are closer than this scatters nobody can say which is faster. Beside them what the host needs where nobody
waits between phases, collections of garbage and calls of the driver's allocator in these steps; with ``profiled`` the
kernels of one forward and one backward pass, those of collectives apart. ``--tiny --device cpu`` tries the machinery.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from dsplan.dsconfig.emit import emit
from runner.environment import child_environment
from runner.launch import free_port
from runner.orphan import PARENT_PID, exit_with_parent
from runner.spec import RunSpec
from tests.gpu.header import header, write_rows
from tests.gpu.regret_kernels import asked, busy_seconds
from tests.gpu.regret_settings import SETS, TINY, Setting

#: Setting, strategies in the order in which they are timed, micro batches, whether kernels are listed, first GPU. Cases
#: of one tuple run side by side, as settings of one rank do in ``tests.gpu.regret``.
_XL = ("xl-sdpa-n1-40", (1, 8, 16), False)
GROUPS = (
    ((*_XL, ("zero1-ckpt", "zero2-ckpt"), 0),),
    ((*_XL, ("zero2-ckpt", "zero1-ckpt"), 0), (*_XL, ("zero1-ckpt", "zero2-ckpt"), 1)),
    (("xl-sdpa-n2-40", (1, 16), True, ("zero3-ckpt", "zero1-ckpt"), 0),),
    (("xl-n1-40", (1, 8), True, ("zero3-ckpt", "zero1-ckpt"), 0),),
)
TINY_GROUPS = (
    (("tiny-n1-0", (1, 4), True, ("zero0", "zero3-ckpt"), 0), ("tiny-n1-0", (1, 4), True, ("zero3-ckpt",), 1)),
    (("tiny-n2-2", (1, 4), True, ("zero3-ckpt",), 0),),
)
WARMUP, STEPS = 6, 6
SETTINGS: dict[str, Setting] = {one.name: one for one in (*(one for set_ in SETS.values() for one in set_), *TINY)}
LIMIT_S = 240.0


class Collected:
    """Seconds of Python's collections of garbage, by generation."""

    def __init__(self) -> None:
        self.seconds = [0.0, 0.0, 0.0]
        self.begun = 0.0

    def __call__(self, phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            self.begun = time.perf_counter()
        else:
            self.seconds[info["generation"]] += time.perf_counter() - self.begun


def kernels_of_passes(engine: Any, batch: tuple[Any, Any]) -> dict[str, Any]:
    """Of one forward and one backward pass: seconds, and how long the device was busy, with collectives and without."""
    from torch.profiler import ProfilerActivity, profile

    found: dict[str, Any] = {}
    loss: list[Any] = []
    calls = (
        ("forward", lambda: loss.append(engine.engine(*batch))),
        ("backward", lambda: engine.engine.backward(loss.pop())),
    )
    for phase, call in calls:
        with profile(activities=[ProfilerActivity.CUDA]) as recorded:
            begun = time.perf_counter()
            call()
            came_back = time.perf_counter() - begun
            engine.synchronize()
            seconds = time.perf_counter() - begun
        spans = [
            (event.time_range.start, event.time_range.end, "nccl" in event.name.lower())
            for event in recorded.events()
            if not getattr(event, "is_user_annotation", False)
        ]
        computing = [(begin, end) for begin, end, sends in spans if not sends]
        by_name: dict[str, list[float]] = defaultdict(lambda: [0, 0.0])
        for event in recorded.events():
            by_name[event.name][0] += 1
            by_name[event.name][1] += (event.time_range.end - event.time_range.start) * 1e-6
        named = sorted(([name[:110], *values] for name, values in by_name.items()), key=lambda row: -row[2])
        found[phase] = {
            "seconds": seconds,
            "came_back_s": came_back,
            "busy_s": busy_seconds([(begin, end) for begin, end, _ in spans]),
            "computing_s": busy_seconds(computing),
            "kernels_s": sum(end - begin for begin, end in computing) * 1e-6,
            "collectives_s": sum(end - begin for begin, end, sends in spans if sends) * 1e-6,
            "collectives": sum(sends for *_, sends in spans),
            "kernels": len(computing),
            "by_name": named[:30],
        }
    engine.engine.step()
    return found


def measured(case: dict[str, Any], size: int, engine: Any, *, cuda: bool) -> dict[str, Any]:
    """One micro batch of one engine."""
    import torch

    batch = engine.batch(size, SETTINGS[case["setting"]].sequence_length)
    marks: list[float] = []

    def step() -> None:
        engine._step(*batch)
        engine.synchronize()
        marks.append(time.perf_counter())

    for _ in range(WARMUP):
        step()
    collected = Collected()
    gc.callbacks.append(collected)
    before = torch.cuda.memory_stats() if cuda else {}
    cpu, first = time.thread_time(), len(marks)
    for _ in range(STEPS):
        step()
    cpu = (time.thread_time() - cpu) / STEPS
    after = torch.cuda.memory_stats() if cuda else {}
    gc.callbacks.remove(collected)
    times = [end - begin for begin, end in itertools.pairwise(marks)]
    counted = times[first - 1 :]
    phased = [engine.time(size, SETTINGS[case["setting"]].sequence_length, warmup=0, steps=1) for _ in range(2)]
    row = {
        **{key: case[key] for key in ("group", "gpu", "turn", "setting", "strategy")},
        **{"micro_batch_size": size, "status": "ok", "seconds": statistics.median(counted), "steps_s": times},
        **{
            phase: statistics.median(getattr(one, phase) for one in phased)
            for phase in ("forward_s", "backward_s", "step_s")
        },
        **{"thread_s": cpu, "collected_s": collected.seconds, "asked": asked(engine, batch, 3)},
        **{
            key: after.get(key, 0) - before.get(key, 0)
            for key in ("num_alloc_retries", "num_device_alloc", "num_device_free")
        },
    }
    if case["profiled"] and cuda:
        row["profiled"] = kernels_of_passes(engine, batch)
    return row


def rank() -> None:
    """One rank of one case, as JSON in the environment."""
    exit_with_parent()
    case: dict[str, Any] = json.loads(os.environ["DSPLAN_CASE"])
    setting = SETTINGS[case["setting"]]
    import torch
    import torch._dynamo

    from runner.device import open_device
    from runner.timed_engine import TimedEngine

    device = open_device(
        RunSpec(model={}, ds_config={}, sequence_length=1, device=case["device"], gpus=int(os.environ["WORLD_SIZE"]))
    )
    import deepspeed

    from runner.calibrate_rank import _load_operators

    deepspeed.init_distributed(dist_backend=device.backend, verbose=False)
    _load_operators(int(os.environ["RANK"]))
    versions = {"torch": torch.__version__, "deepspeed": deepspeed.__version__, **device.versions()}
    tell({"status": "ready", "device": device.info().name, "versions": versions})
    cuda = case["device"] == "cuda"
    for turn, strategy in enumerate(case["strategies"]):
        plan = next(plan for plan in setting.plans() if plan.name == strategy)
        if cuda:
            torch.cuda.set_per_process_memory_fraction(1.0)
        left = device.memory().allocated_bytes if cuda else 0
        engine = TimedEngine(
            setting.model_shape().to_config(),
            emit(plan, setting.model_shape(), setting.cluster),
            checkpointing=plan.workload.activation_checkpointing,
            device=device,
            limit=(lambda left=left: device.limit(setting.cap_bytes + left)) if cuda else None,  # type: ignore[misc]
        )
        for size in case["sizes"]:
            if cuda:
                torch.cuda.empty_cache()
            gc.collect()
            tell(measured({**case, "turn": turn, "strategy": strategy}, size, engine, cuda=cuda))
        engine.close()
    sys.stdout.flush()
    os._exit(0)  # nothing of value is left, and a process group may take its time to go


def tell(row: dict[str, Any]) -> None:
    if os.environ["RANK"] == "0":
        with Path(os.environ["DSPLAN_ROWS"]).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def started(case: dict[str, Any], ranks: int, folder: Path) -> list[subprocess.Popen[bytes]]:
    """The ranks of one case."""
    spec = RunSpec(model={}, ds_config={}, sequence_length=1, device=case["device"], gpus=ranks)
    env = {**child_environment(spec, os.environ), PARENT_PID: str(os.getpid()), "OMP_NUM_THREADS": "16"}
    if case["device"] == "cpu":
        env["OMP_NUM_THREADS"] = "1"
    else:
        seen = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        chosen = range(case["gpu"], case["gpu"] + ranks)
        env["CUDA_VISIBLE_DEVICES"] = ",".join(
            seen[one] if one < len(seen) and seen[one] else str(one) for one in chosen
        )
        env.pop("DSPLAN_VISIBLE_DEVICES", None)
    env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(ranks)}
    env |= {"DSPLAN_CASE": json.dumps(case), "DSPLAN_ROWS": str(folder / f"{case['gpu']}.jsonl")}
    log = (folder / f"{case['gpu']}.log").open("ab")
    return [
        subprocess.Popen(
            [sys.executable, "-m", "tests.gpu.regret_repeats", "--rank"],
            env={**env, "RANK": str(number), "LOCAL_RANK": str(number), "LOCAL_SIZE": str(ranks)},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        for number in range(ranks)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--groups", default="", help="their numbers, with commas; all by default")
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args()
    listed = TINY_GROUPS if arguments.tiny else GROUPS
    numbers = {str(number): number for number in range(len(listed))}
    asked_for = arguments.groups.split(",") if arguments.groups else list(numbers)
    if unknown := [one for one in asked_for if one not in numbers]:
        parser.error(f"--groups: no group is {', '.join(unknown)}; there are {', '.join(numbers)}")
    chosen = [numbers[one] for one in asked_for]
    rows: list[dict[str, Any]] = []
    for group in chosen:
        begun = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            children = []
            for name, sizes, lists, strategies, gpu in listed[group]:
                case = {"group": group, "gpu": gpu, "setting": name, "strategies": strategies, "sizes": sizes}
                case |= {"profiled": lists, "device": arguments.device}
                children += started(case, SETTINGS[name].ranks, Path(folder))
            while any(child.poll() is None for child in children) and time.monotonic() - begun < LIMIT_S:
                if any(child.poll() not in (None, 0) for child in children):
                    break
                time.sleep(0.2)
            for child in children:
                if child.poll() is None:
                    child.kill()
                child.wait()
            rows += [json.loads(line) for path in sorted(Path(folder).glob("*.jsonl")) for line in path.open()]
            if any(child.returncode for child in children):
                for path in Path(folder).glob("*.log"):
                    print(path.read_text(errors="replace")[-3000:], flush=True)
        print(f"group {group}: {time.monotonic() - begun:.0f} s", flush=True)
        ready = next((row for row in rows if row["status"] == "ready"), {"device": "", "versions": {}})
        head = header("python -m tests.gpu.regret_repeats", ready["device"], ready["versions"])
        write_rows(arguments.output, head, [row for row in rows if row["status"] != "ready"])


if __name__ == "__main__":
    rank() if sys.argv[1:] == ["--rank"] else main()
