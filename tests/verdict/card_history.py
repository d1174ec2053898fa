"""What a card's allocator did under a cap: ``python -m tests.verdict.card_history OUTPUT.jsonl.gz CLIMB...``.

A CLIMB is ``SETTING:SIZE[,SIZE]``: rungs of a ladder (``tests.gpu.ladder_settings``), one after the other in one fresh
process; or ``SETTING/STRATEGY:SIZE[,SIZE]``: a strategy of ``tests.gpu.regret_settings``, run as ``verify`` runs it; or
``timed:SETTING/STRATEGY:SIZE``: the same as ``tests.gpu.regret`` runs it. For each rung a line of JSON says how it
ended, then come ``[action, bytes, address, stream]`` of everything that the allocator did, segments too.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

from dsplan.dsconfig.emit import emit
from runner.environment import child_environment
from runner.launch import free_port
from runner.orphan import PARENT_PID, RUN_ID
from runner.spec import RunSpec
from tests.gpu.ladder_settings import SETTINGS
from tests.gpu.ladders import _specification
from tests.gpu.regret_settings import SETTINGS as TIMED
from tests.gpu.regret_settings import TINY

ENTRIES = 3_000_000
TIMEOUT_S = 150.0
TIMED_WARMUP, TIMED_STEPS = 3, 2
HISTORY = "history.jsonl.gz"


def specification(name: str, size: int, device: str = "cuda") -> RunSpec:
    """The run of ``SETTING`` or ``SETTING/STRATEGY`` with a micro batch."""
    setting, _, strategy = name.partition("/")
    if not strategy:
        return _specification(next(each for each in SETTINGS if each.name == setting), size, device)
    found = next(each for each in (*TIMED, *TINY) if each.name == setting)
    plan = next(each for each in found.plans(size) if each.name == strategy)
    model = found.model_shape()
    return RunSpec(
        model=model.to_config(),
        ds_config=emit(plan, model, found.cluster),
        sequence_length=found.sequence_length,
        activation_checkpointing=plan.workload.activation_checkpointing,
        device=device,
        gpus=found.ranks,
        steps=8,
        memory_cap_bytes=found.cap_bytes if device == "cuda" else None,
    )


class Recording:
    """The allocator's history of this process, in the pieces that belong to rungs."""

    def __init__(self) -> None:
        import torch

        self._torch = torch
        self._taken = 0
        if torch.cuda.is_available():
            torch.cuda.memory._record_memory_history(context=None, max_entries=ENTRIES)

    def write(self, folder: Path, **header: Any) -> None:
        """What was done since the last call."""
        traces: list[dict[str, Any]] = []
        statistics: dict[str, int] = {}
        if self._torch.cuda.is_available():
            traces = self._torch.cuda.memory._snapshot()["device_traces"][0][self._taken :]
            self._taken += len(traces)
            found = self._torch.cuda.memory_stats()
            keys = ("num_alloc_retries", "num_ooms", "reserved_bytes.all.peak", "allocated_bytes.all.peak")
            statistics = {key: found.get(key, 0) for key in keys}
            header["device"] = self._torch.cuda.get_device_name()
        header |= {"torch": self._torch.__version__, "statistics": statistics, "entries": len(traces)}
        with gzip.open(folder / HISTORY, "wt", encoding="utf-8", compresslevel=5) as file:
            file.write(json.dumps(header) + "\n")
            for each in traces:
                file.write(json.dumps([each["action"], each["size"], each["addr"], each["stream"]]) + "\n")


def climb(folders: list[Path]) -> int:
    """Rungs, one after the other in this process."""
    from tests.gpu.rung import Climber

    recording = Recording()

    class Recorded(Climber):
        def _write(self, spec: RunSpec) -> None:
            super()._write(spec)
            error = sys.exc_info()[1]
            ended = "survived" if error is None else f"{type(error).__name__}: {str(error)[:300]}"
            recording.write(self.folder, outcome=ended, cap_bytes=spec.memory_cap_bytes)

    return Recorded().climb(folders)


def timed(folders: list[Path]) -> int:
    """As ``tests.gpu.regret_rank`` does one job: the model on the device, cast there, then the allocator limited."""
    import deepspeed
    import torch
    import torch._dynamo

    from runner.device import open_device
    from runner.timed_engine import TimedEngine

    folder = folders[0]
    spec = RunSpec.read(folder / "spec.json")
    cap = spec.memory_cap_bytes
    device = open_device(RunSpec(model={}, ds_config={}, sequence_length=1, device=spec.device, gpus=1))
    deepspeed.init_distributed(dist_backend=device.backend, verbose=False)
    recording = Recording()
    ended = "survived"
    try:
        before = torch.cuda.memory_allocated() if spec.device == "cuda" else 0
        engine = TimedEngine(
            spec.model,
            spec.ds_config,
            checkpointing=spec.activation_checkpointing,
            device=device,
            limit=None if cap is None else (lambda: device.limit(cap + before)),
        )
        size = int(spec.ds_config["train_micro_batch_size_per_gpu"])
        engine.time(size, spec.sequence_length, warmup=TIMED_WARMUP, steps=TIMED_STEPS)
    except Exception as error:
        ended = f"{type(error).__name__}: {str(error)[:300]}"
        traceback.print_exc()
    recording.write(folder, outcome=ended, cap_bytes=cap)
    return 0


def _start(text: str, device: str) -> tuple[str, list[Path], subprocess.Popen[bytes]]:
    is_timed = text.startswith("timed:")
    name, _, sizes = text.removeprefix("timed:").rpartition(":")
    base = Path(tempfile.mkdtemp(prefix="history-"))
    folders = []
    for size in map(int, sizes.split(",")):
        folder = base / str(size)
        folder.mkdir()
        spec = specification(name, size, device)
        spec.write(folder / "spec.json")
        folders.append(folder)
    env = child_environment(spec, os.environ)
    env |= {PARENT_PID: str(os.getpid()), RUN_ID: f"{os.getpid()}-{base.name}"}
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path.cwd()), env.get("PYTHONPATH", "")]))
    env |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    env["MASTER_PORT"] = str(free_port())
    command = [sys.executable, "-m", "runner.child", __spec__.name if __spec__ else "tests.verdict.card_history"]
    command += ["--timed" if is_timed else "--rungs", *map(str, folders)]
    with (base / "log").open("wb") as log:
        return text, folders, subprocess.Popen(command, env=env, cwd=base, stdout=log, stderr=subprocess.STDOUT)


def _say(begun: float, text: str) -> None:
    sys.stdout.write(f"{time.monotonic() - begun:4.0f} s {text}\n")
    sys.stdout.flush()


def main() -> None:
    if sys.argv[1:2] in (["--rungs"], ["--timed"]):
        work = climb if sys.argv[1] == "--rungs" else timed
        code = work([Path(folder) for folder in sys.argv[2:]])
        sys.stdout.flush()
        os._exit(code)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    parser.add_argument("climbs", nargs="+")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--parallel", type=int, default=3, help="processes at once; each has its cap")
    arguments = parser.parse_args()
    begun = time.monotonic()
    waiting, running = list(arguments.climbs), []
    first_ended = False  # the first one compiles DeepSpeed's optimizers
    with gzip.open(arguments.output, "wt", encoding="utf-8", compresslevel=5) as output:
        while waiting or running:
            while waiting and len(running) < (arguments.parallel if first_ended else 1):
                running.append((*_start(waiting.pop(0), arguments.device), time.monotonic()))
            time.sleep(0.2)
            for each in list(running):
                text, folders, process, since = each
                if process.poll() is None and time.monotonic() - since < TIMEOUT_S:
                    continue
                if process.poll() is None:
                    process.kill()
                process.wait()
                running.remove(each)
                first_ended = True
                for folder in folders:
                    line = {"climb": text, "size": int(folder.name), "exit_code": process.returncode}
                    output.write(json.dumps(line) + "\n")
                    history = folder / HISTORY
                    if history.exists():
                        with gzip.open(history, "rt", encoding="utf-8") as file:
                            header = file.readline()
                            output.write(header)
                            output.writelines(file)
                        _say(begun, f"{text} {folder.name}: {header[:240]}")
                    else:
                        tail = (folder.parent / "log").read_text(errors="replace")[-1200:]
                        _say(begun, f"{text} {folder.name}: nothing; {tail}")


if __name__ == "__main__":
    main()
