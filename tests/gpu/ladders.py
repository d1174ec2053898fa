"""Where a micro batch becomes too large: ``python -m tests.gpu.ladders OUTPUT.json --seconds S``.

Each of the settings of ``ladder_settings.py`` is climbed by micro batch, under its cap on torch's allocator, until
the largest that lives and the smallest that dies stand next to each other; then their neighbours are tried, because
what fragments need not fragment more with every sample. A rung is a process of its own per rank, many on one GPU at
once: the caps of all that run there stay below what the GPU has. Every second setting (``unseen``) goes to
OUTPUT.unseen.json, of which nothing is printed.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from dsplan.catalogue import accelerator
from dsplan.dsconfig.emit import emit
from dsplan.hardware import Cluster
from dsplan.kernels import kernels_of
from dsplan.walk import walk
from runner.environment import child_environment
from runner.orphan import PARENT_PID, RUN_ID
from runner.spec import RunSpec
from tests.gpu.ladder_settings import SETTINGS, Setting, unseen

GIB = 2**30
#: Device memory of a process outside its cap (context, kernels, NCCL), with room to spare.
OUTSIDE = {1: 1.6 * GIB, 2: 2.6 * GIB}
#: Resident memory of a process beside what its plan holds on the host, with room to spare.
PROCESS = 4 * GIB
RUNG_TIMEOUT_S = 170.0
GRACE_S = 8.0  # for a rank that failed to end by itself, and for the others to fail too
#: Of the predicted peak: where the search begins, and what every run has lived with so far (tests/data/caps.json).
GUESS, FLOOR = 1.05, 1.20
#: Multicast over NVLink stays off: it concerns the whole host, and its buffers are no part of what is measured.
NO_MULTICAST = {"NCCL_NVLS_ENABLE": "0", "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1", "NVSHMEM_DISABLE_NVLS": "1"}
SURVIVED, DIED, FAILED = "survived", "died", "failed"


@dataclass(kw_only=True)
class Ladder:
    """One setting, and what is known of it: the search begins at ``first``; ``floor`` likely lives, ``limit`` dies."""

    setting: Setting
    secret: bool
    first: int
    limit: int
    floor: int
    host_bytes: int
    rungs: dict[int, dict[str, Any]] = field(default_factory=dict)
    running: set[int] = field(default_factory=set)
    failures: list[dict[str, Any]] = field(default_factory=list)  # for another reason than memory; tried once more

    def outcomes(self, outcome: str) -> list[int]:
        return [size for size, rung in self.rungs.items() if rung["outcome"] == outcome]

    @property
    def gave_up(self) -> bool:
        return len(self.failures) > 2

    def bracket(self) -> tuple[int, int | None]:
        """The smallest that died (None: none has), and the largest below it that survived (0: none has)."""
        died = min(self.outcomes(DIED), default=None)
        lived = [size for size in self.outcomes(SURVIVED) if died is None or size < died]
        return max(lived, default=0), died

    def wanted(self) -> Iterator[tuple[int, int]]:
        """(urgency, micro batch) of what should be tried next, most urgent first; 0 is most urgent."""
        if self.gave_up:
            return
        low, high = self.bracket()
        candidates: list[tuple[int, int]] = []
        if not self.rungs:
            candidates = [(0, self.first), (1, self.first + 1)]
        elif high is None:
            step = max(1, (max(self.limit, low + 2) - low) // 3)
            candidates = [(0, low + step), (1, low + 1)]
        elif low + 1 < high:
            middle = (max(low, self.floor if self.floor + 1 < high else 0) + high) // 2
            candidates = [(0, middle), (1, middle + 1 if middle + 1 < high else middle - 1)]
        else:
            candidates = [(2, low - 1), (2, high + 1), (3, low - 2), (3, high + 2)]
        busy = {0: 0, 1: 1, 2: 1, 3: 1}
        for urgency, size in candidates:
            if size >= 1 and size not in self.rungs and size not in self.running:
                yield urgency + busy[urgency] * len(self.running), size


@dataclass(kw_only=True)
class Rung:
    """A rung that runs."""

    ladder: Ladder
    size: int
    devices: list[int]
    processes: list[subprocess.Popen[bytes]]
    folder: Path
    started: float = field(default_factory=time.monotonic)
    ending_since: float | None = None  # when a rank had failed, or all had written their records


class Climb:
    """All ladders, the machine's room, and what runs on it."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.device: str = arguments.device
        self.output: Path = arguments.output
        self.parallel: int = arguments.parallel
        self.begun = time.monotonic()
        self.seconds: float = arguments.seconds
        self.free = dict.fromkeys(range(arguments.gpus), arguments.gpu_memory * GIB)
        self.host_free = arguments.host_memory * GIB  # as told: a virtual machine may grow only as memory is used
        self.running: list[Rung] = []
        self.starved_since: float | None = None
        self.port = 29610
        self.folder = Path(tempfile.mkdtemp(prefix="ladders"))
        self.saved = 0.0
        secret = unseen()
        chosen = [setting for setting in SETTINGS if not arguments.only or setting.name in arguments.only]
        chosen = [setting for setting in chosen if setting.case.gpus <= arguments.gpus]
        chosen.sort(key=lambda setting: (not setting.heavy, -setting.case.gpus))
        self.ladders = [_ladder(setting, setting.name in secret) for setting in chosen]

    def run(self) -> None:
        while True:
            self._collect()
            in_time = time.monotonic() - self.begun < self.seconds - 30
            started = in_time and self._start_one()
            if not started and not self.running:
                break
            if time.monotonic() - self.begun > self.seconds:
                for rung in self.running:
                    self._end(rung)
                break
            if not started:
                time.sleep(0.1)
        self._save()

    def _start_one(self) -> bool:
        """Start the most urgent rung that there is room for; whether one was started."""
        if sum(len(rung.processes) for rung in self.running) >= self.parallel:
            return False
        wanted = [
            (urgency, index, ladder, size)
            for index, ladder in enumerate(self.ladders)
            for urgency, size in ladder.wanted()
        ]
        wanted.sort(key=lambda item: item[:2])
        for place, (_, _, ladder, size) in enumerate(wanted):
            if devices := self._room(ladder):
                self._start(ladder, size, devices)
                if place == 0:
                    self.starved_since = None
                return True
            # What is most urgent is let wait for room a little while smaller rungs pass it, and no longer.
            if place == 0:
                self.starved_since = self.starved_since or time.monotonic()
                if self.running and time.monotonic() - self.starved_since > 15:
                    return False
        return False

    def _room(self, ladder: Ladder) -> list[int]:
        gpus = ladder.setting.case.gpus
        need = ladder.setting.cap_bytes + OUTSIDE[gpus]
        devices = sorted((device for device, free in self.free.items() if free >= need), key=lambda d: -self.free[d])
        return devices[:gpus] if len(devices) >= gpus and self.host_free >= ladder.host_bytes else []

    def _start(self, ladder: Ladder, size: int, devices: list[int]) -> None:
        setting, case = ladder.setting, ladder.setting.with_micro_batch(size)
        folder = Path(tempfile.mkdtemp(prefix=f"{setting.name}-{size}-", dir=self.folder))
        model = case.model_shape()
        spec = RunSpec(
            model=model.to_config(),
            ds_config=emit(case.plan(), model, Cluster(gpus_per_node=case.gpus)),
            sequence_length=case.sequence_length,
            activation_checkpointing=case.checkpointing,
            device=self.device,
            gpus=case.gpus,
            steps=case.steps,
            memory_cap_bytes=setting.cap_bytes,
            allocator=setting.allocator,
            rank=0 if self.device == "fake" else None,
            target=asdict(accelerator("h200")) if self.device == "fake" else None,
        )
        spec.write(folder / "spec.json")
        base = {**os.environ, "CUDA_VISIBLE_DEVICES": ",".join(map(str, devices))}
        for name, value in NO_MULTICAST.items():
            base.setdefault(name, value)
        base.setdefault("OMP_NUM_THREADS", "8" if case.zero else "2")
        if setting.allocator:
            base["PYTORCH_CUDA_ALLOC_CONF"] = setting.allocator
        env = child_environment(spec, base)
        env |= {PARENT_PID: str(os.getpid()), RUN_ID: f"{os.getpid()}-{setting.name}-{size}"}
        env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path.cwd()), env.get("PYTHONPATH", "")]))
        port = self._next_port()
        processes = []
        for rank in spec.ranks:
            place = {} if self.device == "fake" else {
                "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(case.gpus), "LOCAL_SIZE": str(case.gpus),
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
            }  # fmt: skip
            with (folder / f"log-{rank}").open("wb") as log:
                processes.append(
                    subprocess.Popen(
                        [
                            sys.executable,
                            "-m",
                            "runner.child",
                            "tests.gpu.rung",
                            str(folder / "spec.json"),
                            str(folder),
                        ],
                        env=env | place,
                        cwd=folder,
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
                )
        self._take(ladder, devices, 1)
        ladder.running.add(size)
        self.running.append(Rung(ladder=ladder, size=size, devices=devices, processes=processes, folder=folder))

    def _take(self, ladder: Ladder, devices: list[int], sign: int) -> None:
        for device in devices:
            self.free[device] -= sign * (ladder.setting.cap_bytes + OUTSIDE[ladder.setting.case.gpus])
        self.host_free -= sign * ladder.host_bytes

    def _next_port(self) -> int:
        while True:
            self.port += 1
            with socket.socket() as probe, suppress(OSError):
                probe.bind(("127.0.0.1", self.port))
                return self.port

    def _collect(self) -> None:
        now = time.monotonic()
        for rung in list(self.running):
            over = [process.poll() is not None for process in rung.processes]
            failed = any((rung.folder / f"failure-{rank}.json").exists() for rank in range(len(rung.processes)))
            failed = failed or any(process.poll() not in (None, 0) for process in rung.processes)
            done = all((rung.folder / f"rank-{rank}.json").exists() for rank in range(len(rung.processes)))
            if (failed or done) and rung.ending_since is None:
                rung.ending_since = now
            patient = rung.ending_since is None or now - rung.ending_since < GRACE_S
            if not all(over) and patient and now - rung.started < RUNG_TIMEOUT_S:
                continue
            self._end(rung)
            self.running.remove(rung)
            self._take(rung.ladder, rung.devices, -1)
            rung.ladder.running.discard(rung.size)
            found = _result(rung)
            again = found["outcome"] == FAILED and all(
                failure["micro_batch_size"] != rung.size for failure in rung.ladder.failures
            )
            if found["outcome"] == FAILED:
                rung.ladder.failures.append(found)
            if not again:
                rung.ladder.rungs[rung.size] = found
            self._tell(rung, found)
        if now - self.saved > 5:
            self._save()

    def _end(self, rung: Rung) -> None:
        for process in rung.processes:
            if process.poll() is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def _tell(self, rung: Rung, found: dict[str, Any]) -> None:
        elapsed = time.monotonic() - self.begun
        name, running = rung.ladder.setting.name, len(self.running)
        said = f"{elapsed:5.0f} s  {name:32} {found['seconds']:5.1f} s  {running} run on"
        if rung.ladder.secret and found["outcome"] != FAILED:
            print(f"{said}  (unseen)", flush=True)
            return
        print(f"{said}  n {rung.size}: {found['outcome']} {found.get('message', '')[:140]}", flush=True)
        if found["outcome"] == FAILED:
            print("\n".join(found["log"][-4:]), flush=True)

    def _save(self) -> None:
        self.saved = time.monotonic()
        for secret in (False, True):
            path = self.output.with_suffix(".unseen.json") if secret else self.output
            ladders = [_document(ladder) for ladder in self.ladders if ladder.secret == secret]
            document = {
                "made_by": "python -m tests.gpu.ladders",
                "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
                "device": self.device,
                "ladders": ladders,
            }
            temporary = path.with_suffix(".tmp")
            temporary.write_text(json.dumps(document, separators=(",", ":")), encoding="utf-8")
            temporary.replace(path)


def _ladder(setting: Setting, secret: bool) -> Ladder:
    kernels = kernels_of(accelerator("h200"))

    def peak(size: int) -> tuple[int, int]:
        case = setting.with_micro_batch(size)
        result = walk(case.model_shape(), case.plan(), case.gpus, kernels)
        return max(step.peak_bytes for step in result.steps), result.host_bytes

    def largest(factor: float) -> int:
        size = 1
        while peak(size + 1)[0] * factor <= setting.cap_bytes:
            size += 1
        return size

    case = setting.case
    building = 0 if case.stage == 3 else 5 * case.model_shape().num_parameters  # fp32, and room for a copy
    return Ladder(
        setting=setting,
        secret=secret,
        first=largest(GUESS),
        limit=largest(1.0) + 1,
        floor=largest(FLOOR),
        host_bytes=case.gpus * (max(building, peak(1)[1]) + int(PROCESS)),
    )


def _result(rung: Rung) -> dict[str, Any]:
    """What is kept of a rung: outcome, where it died, and what the ranks held."""
    ranks, folder = range(len(rung.processes)), rung.folder
    found: dict[str, Any] = {"micro_batch_size": rung.size, "seconds": round(time.monotonic() - rung.started, 1)}
    records = [_read(folder / f"rank-{rank}.json") for rank in ranks]
    failures = [(rank, _read(folder / f"failure-{rank}.json")) for rank in ranks]
    found["ranks"] = [
        {**_peaks(record), "allocator": _read(folder / f"allocator-{rank}.json")}
        for rank, record in zip(ranks, records, strict=True)
    ]
    if all(records):
        return {**found, "outcome": SURVIVED}
    out = [(rank, failure) for rank, failure in failures if failure and failure.get("kind") == "out_of_memory"]
    if out:
        rank, failure = out[0]
        where = {"rank": rank, "phase": failure.get("phase"), "step": failure.get("step")}
        return {**found, "outcome": DIED, **where, "message": failure.get("message", "")}
    logs = [(folder / f"log-{rank}").read_text(errors="replace").splitlines()[-12:] for rank in ranks]
    message = next((str(failure.get("message")) for _, failure in failures if failure), "no record and no failure")
    codes = [process.returncode for process in rung.processes]
    return {**found, "outcome": FAILED, "message": message, "exit_codes": codes, "log": logs[0]}


def _read(path: Path) -> dict[str, Any] | None:
    try:
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return document


def _peaks(record: dict[str, Any] | None) -> dict[str, Any]:
    """Per step the highest allocated and reserved bytes and the driver's; the host's figures; steps by phase."""
    if record is None:
        return {}

    def highest(phases: dict[str, Any]) -> list[int | None]:
        keys = ("peak_bytes", "peak_reserved_bytes", "device_bytes")
        return [max((phase.get(key) or 0 for phase in phases.values()), default=None) for key in keys]

    return {
        "device": record["device"],
        "versions": record["versions"],
        "init": highest({"init": record["init"]}),
        "steps": [highest(step["phases"]) for step in record["steps"]],
        "skipped": sum(bool(step["skipped"]) for step in record["steps"]),
        "host": record["host"],
    }


def _document(ladder: Ladder) -> dict[str, Any]:
    setting, (low, high) = ladder.setting, ladder.bracket()
    return {
        "name": setting.name,
        "cap_bytes": setting.cap_bytes,
        "allocator": setting.allocator,
        "ranks": setting.case.gpus,
        "steps": setting.case.steps,
        "largest_that_lived": low,
        "smallest_that_died": high,
        "failures": ladder.failures,
        "rungs": [rung for _, rung in sorted(ladder.rungs.items())],
    }


def _compile(device: str) -> None:
    """Build DeepSpeed's native optimizers once, before many processes would wait for each other to do so."""
    if device != "cuda":
        return
    started = time.monotonic()
    builds = [
        subprocess.Popen(
            [sys.executable, "-c", f"from deepspeed.ops.op_builder import {name} as b; b().load()"],
            env={**os.environ, "DS_ACCELERATOR": "cuda"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for name in ("FusedAdamBuilder", "CPUAdamBuilder")
    ]
    codes = [build.wait() for build in builds]
    print(f"native optimizers: {time.monotonic() - started:.0f} s, exit codes {codes}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("output", type=Path)
    parser.add_argument("--seconds", type=float, default=540)
    parser.add_argument("--device", default="cuda", choices=("cuda", "fake"))
    parser.add_argument("--gpus", type=int, default=2)
    parser.add_argument("--gpu-memory", type=float, default=125, help="GiB of each GPU to share out")
    parser.add_argument("--host-memory", type=float, default=205, help="GiB of the host to share out")
    parser.add_argument("--parallel", type=int, default=14, help="processes at once")
    parser.add_argument("--only", nargs="*", help="names of settings")
    arguments = parser.parse_args()
    climb = Climb(arguments)
    print(f"{len(climb.ladders)} ladders", flush=True)
    _compile(arguments.device)
    climb.run()
    closed = 0
    for ladder in climb.ladders:
        low, high = ladder.bracket()
        done = high is not None and (high == low + 1)
        closed += done
        what = "unseen" if ladder.secret else f"lived {low} died {high}"
        print(f"{ladder.setting.name:32} {len(ladder.rungs):3} rungs  {'closed' if done else 'OPEN  '} {what}")
    print(f"{closed} of {len(climb.ladders)} closed in {time.monotonic() - climb.begun:.0f} s")


if __name__ == "__main__":
    main()
