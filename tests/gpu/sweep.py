"""Record many cases in one go: ``python -m tests.gpu.sweep SET OUTPUT.json [--seconds S]``.

Packs cases onto the GPUs of this machine (one process per GPU), largest first within a size, starts no
case after the time is up, prints a short table, and saves every record with what was asked for.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dsplan.dsconfig.emit import emit
from dsplan.hardware import Cluster
from dsplan.model import ModelShape
from tests.gpu.cases import REMADE, Case
from tests.gpu.cases import SETS as MINGPT_SETS
from tests.gpu.ddp_cases import DDP, THROUGHPUT
from tests.gpu.eight_cases import EIGHT, THROUGHPUT_8
from tests.gpu.hf_cases import HF
from tests.gpu.shared_cases import SHARED_4, SHARED_8, SHARED_8_ON_4

SETS = {
    **MINGPT_SETS,
    "remade": REMADE,
    "HF": HF,
    "shared-4": SHARED_4,
    "shared-8": SHARED_8,
    "shared-8-on-4": SHARED_8_ON_4,
    "ddp": DDP,
    "throughput": THROUGHPUT,
    "eight": EIGHT,
    "throughput-8": THROUGHPUT_8,
}


@dataclass
class Running:
    case: Case
    devices: list[int]
    process: subprocess.Popen[bytes]
    folder: Path
    started: float = field(default_factory=time.monotonic)


def start(case: Case, devices: list[int], timeout_s: int, device: str) -> Running:
    model = case.model_shape()
    folder = Path(tempfile.mkdtemp(prefix=case.name))
    (folder / "config.json").write_text(json.dumps(model.to_config()))
    command = [
        *(sys.executable, "-m", "dsplan", "verify", "--model", str(folder / "config.json")),
        *(_ddp(case) if case.ddp else _deepspeed(case, model, folder)),
        *("--seq-len", str(case.sequence_length)),
        *("--activation-checkpointing", case.checkpointing, "--device", device, "--gpus", str(case.gpus)),
        *(("--share-devices", str(case.devices)) if case.devices else ()),
        *(("--late-release",) if case.late_release else ()),
        *("--steps", str(case.steps), "--timeout", str(timeout_s), "-o", str(folder / "record.json")),
    ]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ",".join(map(str, devices)), "OMP_NUM_THREADS": "12"}
    process = subprocess.Popen(
        command, env=environment, stdout=(folder / "stdout.log").open("wb"), stderr=subprocess.STDOUT
    )
    return Running(case, devices, process, folder)


def _deepspeed(case: Case, model: ModelShape, folder: Path) -> tuple[str, ...]:
    configuration = folder / f"{case.name}.json"
    configuration.write_text(json.dumps(emit(case.plan(), model, Cluster(gpus_per_node=case.gpus))))
    return "--ds-config", str(configuration)


def _ddp(case: Case) -> tuple[str, ...]:
    workload = case.plan().workload
    return (
        *("--plan", "ddp", "--precision", workload.precision, "--optimizer", workload.optimizer),
        *("--micro-batch-size", str(workload.micro_batch_size)),
        *("--gradient-accumulation-steps", str(workload.gradient_accumulation_steps)),
    )


def finish(run: Running) -> dict[str, Any]:
    seconds = time.monotonic() - run.started
    name, record = run.case.name, run.folder / "record.json"
    if record.exists():
        document = json.loads(record.read_text())
        peak = document["comparison"]["peak_allocated"]
        print(
            f"{name:36} {seconds:6.1f} s  exit {run.process.returncode}  peak {peak['measured_bytes'] / 2**20:9.1f} MiB"
            f"  error {peak['error_percent']:6.2f} %",
            flush=True,
        )
        return {"name": name, "record": document}
    log = (run.folder / "stdout.log").read_text(errors="replace")[-2500:]
    print(f"{name:36} {seconds:6.1f} s  FAILED with {run.process.returncode}: {log}", flush=True)
    return {"name": name, "failure": log}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("set", choices=SETS)
    parser.add_argument("output", type=Path)
    parser.add_argument("--seconds", type=float, default=500)
    parser.add_argument("--only", nargs="*", help="names of the set's cases (default: all)")
    parser.add_argument("--case-timeout", type=int, default=150)
    parser.add_argument("--gpus", type=int, default=4)
    parser.add_argument("--device", default="cuda")
    arguments = parser.parse_args()
    begun = time.monotonic()
    unknown = sorted(set(arguments.only or ()) - {case.name for case in SETS[arguments.set]})
    if unknown:
        parser.error(f"--only: not in the set {arguments.set}: {', '.join(unknown)}")
    chosen = [case for case in SETS[arguments.set] if arguments.only is None or case.name in arguments.only]
    waiting = [case for case in chosen if case.cards <= arguments.gpus]
    for case in chosen:
        if case not in waiting:
            print(f"{case.name:36} not started: needs {case.cards} cards", flush=True)
    free, running, documents = list(range(arguments.gpus)), [], []
    while waiting or running:
        in_time = time.monotonic() - begun < arguments.seconds
        case = next((case for case in waiting if case.cards <= len(free)), None) if in_time else None
        if case is not None:
            waiting.remove(case)
            devices, free = free[: case.cards], free[case.cards :]
            running.append(start(case, devices, arguments.case_timeout, arguments.device))
            continue
        if not running:
            break
        time.sleep(0.2)
        for run in [run for run in running if run.process.poll() is not None]:
            running.remove(run)
            free = sorted(free + run.devices)
            documents.append(finish(run))
            arguments.output.write_text(json.dumps(documents))
    for case in waiting:
        print(f"{case.name:36} not started: out of time", flush=True)


if __name__ == "__main__":
    main()
