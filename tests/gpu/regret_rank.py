"""One rank of the regret measurement: times plan after plan in one process (``tests.gpu.regret`` starts it).

``python -m tests.gpu.regret_rank DEVICE JOBS.json OUTPUT.jsonl SECONDS``. A job is a setting and a plan; a line of
output is one micro batch of it, or what a job ended with.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch._dynamo

from runner.device import Device, open_device
from runner.orphan import exit_with_parent
from runner.spec import RunSpec
from runner.timed_engine import TimedEngine
from tests.gpu.regret_settings import QUICK, RECOMMENDED, SETS, TINY, Setting

BY_NAME = {
    setting.name: setting for setting in (*(setting for settings in SETS.values() for setting in settings), *TINY)
}
KEPT = ("setting", "strategy", "of", "zero", "profile", "predicted_s")
MOST_LEFT = 24 * 2**30  # by engines that were closed; then a new process goes on
LONG_S = 0.4  # a step that is expected to take longer is timed fewer times
WARMUP = (8, 3)  # steps of an engine before its first is timed, short and long: five are slower (regret_repeats.json)


class Rank:
    def __init__(self, device: Device, output: Path, deadline: float) -> None:
        self.device = device
        self.output = output
        self.deadline = deadline
        self.cuda = device.torch_device().type == "cuda"
        self.rank, self.world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])

    def say(self, **row: Any) -> None:
        if self.rank == 0 or row.get("status") in ("error", "oom"):
            with self.output.open("a") as file:
                file.write(json.dumps(row) + "\n")

    def agree(self, value: bool) -> bool:
        """Whether ``value`` holds on any rank."""
        if self.world_size == 1:
            return value
        flag = torch.tensor([int(value)], device=self.device.torch_device())
        torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
        return bool(flag.item())

    def job(self, job: dict[str, Any]) -> None:
        setting = BY_NAME[job["setting"]]
        model = setting.model_shape()
        common = {key: job[key] for key in KEPT if key in job}
        self.say(**common, status="started")
        predicted = dict(job["peaks"])
        always = job["strategy"] in (RECOMMENDED, QUICK)
        sizes = [size for size, peak in predicted.items() if always or not self.cuda or setting.fits(peak)]
        for size, peak in predicted.items():
            if size not in sizes:
                self.say(**common, micro_batch_size=size, status="beyond", predicted_bytes=peak)
        sizes = thinned(sizes, setting.most_sizes)
        if not sizes:
            self.say(**common, status="done", left_bytes=0, whole_s=0.0)
            return
        engine: TimedEngine | None = None
        size = sizes[0]
        begun = time.monotonic()
        before = self.allocated()  # what earlier engines have left counts against nobody
        try:
            if self.cuda:
                torch.cuda.set_per_process_memory_fraction(1.0)
            engine = TimedEngine(
                model.to_config(),
                job["ds_config"],
                checkpointing=job["checkpointing"],
                device=self.device,
                limit=(lambda: self.device.limit(setting.cap_bytes + before)) if self.cuda else None,
            )
            built = time.monotonic() - begun
            for size in sizes:
                if self.agree(time.monotonic() > self.deadline):
                    self.say(**common, micro_batch_size=size, status="out of time")
                    break
                if self.cuda and size != sizes[0]:  # the first finds what a run finds, and leaves the next nothing
                    torch.cuda.empty_cache()
                row = self.timed(engine, setting, size, first=size == sizes[0], before=before)
                self.say(**common, **row, predicted_bytes=predicted[size], built_s=built)
        except Exception as error:
            if "out of memory" not in str(error):
                self.say(**common, status="error", message=f"{type(error).__name__}: {str(error)[:400]}")
                raise
            text = str(error)[:600]
            self.say(**common, micro_batch_size=size, status="oom", predicted_bytes=predicted[size], message=text)
            if self.world_size > 1:  # the other rank may wait in a collective: all of them start afresh
                os._exit(9)
        if engine is not None:
            engine.close()
        left = self.allocated()
        self.say(**common, status="done", left_bytes=left, whole_s=time.monotonic() - begun)
        if self.agree(left > MOST_LEFT):
            self.say(status="unclean")
            raise SystemExit(9)

    def timed(self, engine: TimedEngine, setting: Setting, size: int, *, first: bool, before: int) -> dict[str, Any]:
        """Steps of one micro batch; ``first`` of this engine; ``before``: bytes that earlier engines have left."""
        if self.cuda:
            self.device.reset_peak()
        gc.collect()  # of what went before, not of the steps that are timed
        expected = 6 * setting.model_shape().num_parameters * size * setting.sequence_length / 3e14
        steps = 2 if expected > LONG_S else 4
        warmup = WARMUP[expected > LONG_S] if first else 1
        times = engine.time(size, setting.sequence_length, warmup=warmup, steps=steps)
        found = self.device.peak() if self.cuda else None
        return {
            "micro_batch_size": size,
            "status": "ok",
            "peak_allocated_bytes": found.allocated_bytes - before if found else None,
            "peak_reserved_bytes": found.reserved_bytes if found else None,
            "left_before_bytes": before,
            "seconds": times.seconds,
            "forward_s": times.forward_s,
            "backward_s": times.backward_s,
            "step_s": times.step_s,
        }

    def allocated(self) -> int:
        return self.device.memory().allocated_bytes if self.cuda else 0


def thinned(sizes: list[int], most: int) -> list[int]:
    """At most ``most``, two or more: the smallest, and the largest, among which the fastest are."""
    return sizes if len(sizes) <= most else [sizes[0], *sizes[1 - most :]]


def main() -> None:
    exit_with_parent()
    kind, jobs, output, seconds = sys.argv[1], json.loads(Path(sys.argv[2]).read_text()), Path(sys.argv[3]), sys.argv[4]
    begun = time.monotonic()
    world_size = int(os.environ["WORLD_SIZE"])
    device = open_device(RunSpec(model={}, ds_config={}, sequence_length=1, device=kind, gpus=world_size))
    import deepspeed

    from runner.calibrate_rank import _load_operators

    deepspeed.init_distributed(dist_backend=device.backend, verbose=False)
    _load_operators(int(os.environ["RANK"]))
    rank = Rank(device, output, begun + float(seconds))
    versions = {"torch": torch.__version__, "deepspeed": deepspeed.__version__, **device.versions()}
    rank.say(status="ready", device=device.info().name, versions=versions)
    for number, job in enumerate(jobs):
        if rank.agree(time.monotonic() > rank.deadline):
            break
        if number and job["strategy"] == RECOMMENDED:  # a verdict is about a process of its own
            rank.say(status="afresh")  # where other engines' segments lay, a run's own may lie in another order
            sys.stdout.flush()
            os._exit(9)
        rank.job(job)
    rank.say(status="end")
    sys.stdout.flush()
    os._exit(0)  # nothing of value is left, and a process group may take its time to go


if __name__ == "__main__":
    main()
