"""Where a micro batch becomes too large: ``python -m tests.gpu.ladders OUTPUT.json --set SET --seconds S``.

Each of the settings of ``ladder_settings.py`` is climbed by micro batch, under its cap on torch's allocator, until
the largest that lives and the smallest that dies stand next to each other; then their neighbours are tried. A climb is
one process per rank (``tests.gpu.rung``) that begins just below what is predicted and takes one rung after the other
until one dies; rungs after the first run in address space that was used before, so their segments lie elsewhere than in
a fresh process (``tests.verdict.card_history``). Many climbs run on one GPU at once: the caps of all there stay
below what the GPU has. Every second setting (``unseen``) goes to OUTPUT.unseen.json, of which nothing is printed.
Results are written as they come; a rung that takes too long is ended and counts as failed.
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
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path

from dsplan.catalogue import accelerator
from dsplan.dsconfig.emit import emit
from dsplan.hardware import Cluster
from runner.environment import child_environment
from runner.orphan import PARENT_PID, RUN_ID
from runner.spec import RunSpec
from tests.gpu.ladder import FAILED, Ladder, document
from tests.gpu.ladder_prediction import predicted
from tests.gpu.ladder_rung import has_failed, is_over, result
from tests.gpu.ladder_settings import SETS, Setting, unseen

GIB = 2**30
#: Device memory of a process outside its cap (context, kernels, NCCL), with room to spare.
OUTSIDE = {1: 1.6 * GIB, 2: 2.6 * GIB, 4: 2.8 * GIB}
#: A process starts, and a rung is climbed, within.
START_TIMEOUT_S, RUNG_TIMEOUT_S, SLOW_TIMEOUT_S = 120.0, 75.0, 150.0
GRACE_S = 4.0  # for the other ranks to fail too
SAVE_S = 5.0
#: A climb is not begun when less than this is left.
LAST_START_S = 30.0
#: What is most urgent waits this long for room while others pass it.
PATIENT_S = 15.0
#: Multicast over NVLink stays off: it concerns the whole host, and its buffers are no part of what is measured.
NO_MULTICAST = {"NCCL_NVLS_ENABLE": "0", "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1", "NVSHMEM_DISABLE_NVLS": "1"}
#: What takes the rungs of a climb, given their folders.
CLIMBER = ("-m", "runner.child", "tests.gpu.rung")
_BUILDERS = {
    ("adamw", False): "FusedAdamBuilder",
    ("adamw", True): "CPUAdamBuilder",
    ("lion", False): "FusedLionBuilder",
    ("lion", True): "CPULionBuilder",
    ("adagrad", True): "CPUAdagradBuilder",
}


@dataclass(kw_only=True)
class Climb:
    """One process per rank, and the rungs that it is to take."""

    ladder: Ladder
    sizes: list[int]
    devices: list[int]
    processes: list[subprocess.Popen[bytes]]
    folder: Path
    rung_began: float = field(default_factory=time.monotonic)
    ending_since: float | None = None  # when a rank had failed
    at: int = 0

    @property
    def size(self) -> int:
        return self.sizes[self.at]

    @property
    def rung(self) -> Path:
        return self.folder / str(self.size)

    @property
    def logs(self) -> list[Path]:
        return [self.folder / f"log-{rank}" for rank in range(len(self.processes))]

    @property
    def timeout_s(self) -> float:
        setting = self.ladder.setting
        slow = setting.heavy or setting.case.devices is not None  # ranks that share a device wait for each other
        rung = SLOW_TIMEOUT_S if slow else RUNG_TIMEOUT_S
        return rung + (START_TIMEOUT_S if self.at == 0 else 0)


class Climbs:
    """All ladders, the machine's room, and what runs on it."""

    def __init__(self, arguments: argparse.Namespace, ladders: list[Ladder], begun: float) -> None:
        self.device: str = arguments.device
        self.output: Path = arguments.output
        self.parallel: int = arguments.parallel
        self.begun = begun
        self.seconds: float = arguments.seconds
        self.free = dict.fromkeys(range(arguments.gpus), arguments.gpu_memory * GIB)
        self.host_free = arguments.host_memory * GIB  # as told: a virtual machine may grow only as memory is used
        self.running: list[Climb] = []
        self.starved_since: float | None = None
        self.port = 29610
        self.folder = Path(tempfile.mkdtemp(prefix="ladders"))
        self.saved = 0.0
        self.ladders = ladders

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.begun

    def run(self) -> None:
        while True:
            self._collect()
            started = self.elapsed < self.seconds - LAST_START_S and self._start_one()
            if not started and not self.running:
                break
            if self.elapsed > self.seconds:
                for climb in self.running:
                    _end(climb)
                break
            if not started:
                time.sleep(0.1)
        self._save()

    def _start_one(self) -> bool:
        """Start the most urgent climb that there is room for; whether one was started."""
        if sum(len(climb.processes) for climb in self.running) >= self.parallel:
            return False
        wanted = [
            (urgency, index, ladder, sizes)
            for index, ladder in enumerate(self.ladders)
            for urgency, sizes in ladder.wanted()
        ]
        wanted.sort(key=lambda item: item[:2])
        for place, (_, _, ladder, sizes) in enumerate(wanted):
            if devices := self._room(ladder):
                self._start(ladder, list(sizes), devices)
                if place == 0:
                    self.starved_since = None
                return True
            if place == 0:
                self.starved_since = self.starved_since or time.monotonic()
                if self.running and time.monotonic() - self.starved_since > PATIENT_S:
                    return False
        return False

    def _room(self, ladder: Ladder) -> list[int]:
        cards = ladder.setting.case.cards
        need = _bytes_per_card(ladder.setting)
        devices = sorted((device for device, free in self.free.items() if free >= need), key=lambda d: -self.free[d])
        return devices[:cards] if len(devices) >= cards and self.host_free >= ladder.host_bytes else []

    def _start(self, ladder: Ladder, sizes: list[int], devices: list[int]) -> None:
        setting, case = ladder.setting, ladder.setting.case
        if self.device == "fake":  # which is one run in one process
            sizes = sizes[:1]
        folder = Path(tempfile.mkdtemp(prefix=f"{setting.name}-{sizes[0]}-", dir=self.folder))
        for size in sizes:
            (folder / str(size)).mkdir()
            spec = _specification(setting, size, self.device)
            spec.write(folder / str(size) / "spec.json")
        base = {**os.environ, "CUDA_VISIBLE_DEVICES": ",".join(map(str, devices))}
        for name, value in NO_MULTICAST.items():
            base.setdefault(name, value)
        base.setdefault("OMP_NUM_THREADS", "8" if "offload_optimizer" in case.zero else "2")
        if setting.allocator:
            base["PYTORCH_CUDA_ALLOC_CONF"] = setting.allocator
        env = child_environment(spec, base)
        env |= {PARENT_PID: str(os.getpid()), RUN_ID: f"{os.getpid()}-{folder.name}"}
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
                        [sys.executable, *CLIMBER, *(str(folder / str(size)) for size in sizes)],
                        env=env | place,
                        cwd=folder,
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
                )
        self._take(ladder, devices, 1)
        ladder.is_running = True
        self.running.append(Climb(ladder=ladder, sizes=sizes, devices=devices, processes=processes, folder=folder))

    def _take(self, ladder: Ladder, devices: list[int], sign: int) -> None:
        for device in devices:
            self.free[device] -= sign * _bytes_per_card(ladder.setting)
        self.host_free -= sign * ladder.host_bytes

    def _next_port(self) -> int:
        while True:
            self.port += 1
            with socket.socket() as probe, suppress(OSError):
                probe.bind(("127.0.0.1", self.port))
                return self.port

    def _collect(self) -> None:
        for climb in list(self.running):
            if self._is_done(climb):
                _end(climb)
                self.running.remove(climb)
                self._take(climb.ladder, climb.devices, -1)
                climb.ladder.is_running = False
        if time.monotonic() - self.saved > SAVE_S:
            self._save()

    def _is_done(self, climb: Climb) -> bool:
        """Take the rungs that are over; whether the climb is."""
        ranks, now = len(climb.processes), time.monotonic()
        ended = [process.poll() is not None for process in climb.processes]  # before what they wrote is looked at
        while is_over(climb.rung, ranks):
            self._take_rung(climb)
            if climb.at + 1 == len(climb.sizes):
                return True
            climb.at += 1
        failed = has_failed(climb.rung, ranks) or any(process.poll() not in (None, 0) for process in climb.processes)
        if failed and climb.ending_since is None:
            climb.ending_since = now
        impatient = climb.ending_since is not None and now - climb.ending_since > GRACE_S
        late = now - climb.rung_began > climb.timeout_s
        if not all(ended) and not impatient and not late:
            return False
        _end(climb)
        if climb.at == 0 or failed or late:
            self._take_rung(climb)
        return True  # else something was left of the rung before: the next one gets a new process

    def _take_rung(self, climb: Climb) -> None:
        seconds = time.monotonic() - climb.rung_began
        climb.rung_began = time.monotonic()
        found = result(climb.rung, climb.size, len(climb.processes), seconds=seconds, logs=climb.logs)
        climb.ladder.take(found)
        said = f"{self.elapsed:5.0f} s  {climb.ladder.setting.name:34} {seconds:5.1f} s  {len(self.running)} run"
        if climb.ladder.secret and found["outcome"] != FAILED:
            print(f"{said}  (unseen)", flush=True)
            return
        print(f"{said}  n {climb.size}: {found['outcome']} {found.get('message', '')[:140]}", flush=True)
        if found["outcome"] == FAILED:
            print("\n".join(found["log"][-8:]), flush=True)

    def _save(self) -> None:
        self.saved = time.monotonic()
        for secret in (False, True):
            path = self.output.with_suffix(".unseen.json") if secret else self.output
            made = {
                "made_by": "python -m tests.gpu.ladders",
                "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
                "device": self.device,
                "ladders": [document(ladder) for ladder in self.ladders if ladder.secret == secret],
            }
            temporary = path.with_suffix(".tmp")
            temporary.write_text(json.dumps(made, separators=(",", ":")), encoding="utf-8")
            temporary.replace(path)


def _bytes_per_card(setting: Setting) -> float:
    case = setting.case
    return -(-case.gpus // case.cards) * (setting.cap_bytes + OUTSIDE[case.gpus])


def _end(climb: Climb) -> None:
    for process in climb.processes:
        if process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _specification(setting: Setting, size: int, device: str) -> RunSpec:
    case = setting.with_micro_batch(size)
    model = case.model_shape()
    return RunSpec(
        model=model.to_config(),
        ds_config=emit(case.plan(), model, Cluster(gpus_per_node=case.gpus)),
        sequence_length=case.sequence_length,
        activation_checkpointing=case.checkpointing,
        device=device,
        gpus=case.gpus,
        devices=case.devices if device == "cuda" else None,
        steps=case.steps,
        memory_cap_bytes=setting.cap_bytes,
        allocator=setting.allocator,
        rank=0 if device == "fake" else None,
        target=asdict(accelerator("h200")) if device == "fake" else None,
    )


def _ladders(settings: list[Setting], secret: frozenset[str]) -> list[Ladder]:
    """The ladders of ``settings``, predicted by as many processes as there are cores."""
    with ProcessPoolExecutor() as pool:
        predictions = list(pool.map(predicted, settings))
    for setting, found in zip(settings, predictions, strict=True):
        if found.error:
            print(f"{setting.name}: no verdict: {found.error}", flush=True)
    return [
        Ladder(
            setting=setting,
            secret=setting.name in secret,
            called_fits=found.called_fits,
            first=found.first,
            host_bytes=found.host_bytes,
        )
        for setting, found in zip(settings, predictions, strict=True)
    ]


def _compile(settings: list[Setting]) -> list[subprocess.Popen[bytes]]:
    """Build DeepSpeed's native optimizers once, before many processes would wait for each other to do so."""
    used = {(setting.case.optimizer, "offload_optimizer" in setting.case.zero) for setting in settings}
    return [
        subprocess.Popen(
            [sys.executable, "-c", f"from deepspeed.ops.op_builder import {builder} as b; b().load()"],
            env={**os.environ, "DS_ACCELERATOR": "cuda"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for kind, builder in _BUILDERS.items()
        if kind in used
    ]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("output", type=Path)
    parser.add_argument("--set", choices=SETS, default="first")
    parser.add_argument("--seconds", type=float, default=480, help="for everything, compilation too")
    parser.add_argument("--device", default="cuda", choices=("cuda", "fake"))
    parser.add_argument("--gpus", type=int, default=2)
    parser.add_argument("--gpu-memory", type=float, default=125, help="GiB of each GPU to share out")
    parser.add_argument("--host-memory", type=float, default=205, help="GiB of the host to share out")
    parser.add_argument("--parallel", type=int, default=18, help="processes at once")
    parser.add_argument("--only", nargs="*", help="names of settings")
    arguments = parser.parse_args()
    begun = time.monotonic()
    settings = [setting for setting in SETS[arguments.set] if not arguments.only or setting.name in arguments.only]
    settings = [setting for setting in settings if setting.case.cards <= arguments.gpus]
    settings.sort(key=lambda setting: (not setting.heavy, -setting.case.gpus))
    builds = _compile(settings) if arguments.device == "cuda" else []
    ladders = _ladders(settings, unseen(SETS[arguments.set]))
    print(f"{len(ladders)} ladders, predicted after {time.monotonic() - begun:.0f} s", flush=True)
    codes = [build.wait() for build in builds]
    print(f"native optimizers: {time.monotonic() - begun:.0f} s, exit codes {codes}", flush=True)
    climbs = Climbs(arguments, ladders, begun)
    climbs.run()
    for ladder in ladders:
        low, high = ladder.bracket()
        what = "unseen" if ladder.secret else f"lived {low} died {high}, called fits {ladder.called_fits}"
        state = "closed" if ladder.is_closed else "OPEN  "
        print(f"{ladder.setting.name:34} {len(ladder.rungs):3} rungs  {state} {what}")
    print(f"{sum(ladder.is_closed for ladder in ladders)} of {len(ladders)} closed in {climbs.elapsed:.0f} s")


if __name__ == "__main__":
    main()
