"""Time every stage over a ladder of micro batches: ``python -m tests.gpu.regret OUTPUT.json [--set NAME]``.

Settings of one rank run side by side on two GPUs; those of several ranks after them. Every second setting goes to
OUTPUT.unseen.json, which nobody looks at while the model of step time is made. A process that hangs or dies is
started again with what is left. ``--tiny --device cpu`` tries the machinery.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from runner.environment import child_environment
from runner.launch import free_port
from runner.orphan import PARENT_PID
from runner.spec import RunSpec
from tests.gpu.header import header, write_rows
from tests.gpu.regret_jobs import Job, jobs
from tests.gpu.regret_settings import ASKED, SETS, TINY, Setting

STALL_S, COMPILING_S = 75.0, 300.0
SHARE_OF_ONE_RANK = 0.42  # of the time, where a set also has settings of several ranks
MADE_BY = "python -m tests.gpu.regret"


def _key(of: dict[str, Any]) -> tuple[str, str]:
    return of.get("setting", ""), of.get("strategy", "")


class Lane:
    """Some settings on some GPUs, in one process per rank."""

    def __init__(self, listed: list[Job], gpus: list[int], ranks: int, device: str, until: float, folder: Path) -> None:
        self.jobs = listed
        self.gpus, self.device, self.deadline, self.folder = gpus, device, until, folder
        self.ranks = ranks
        self.rows: list[dict[str, Any]] = []
        self.children: list[subprocess.Popen[bytes]] = []
        self.starts = 0
        self.start()

    def start(self) -> None:
        if not self.jobs or time.monotonic() > self.deadline:
            return
        self.starts += 1
        stem = f"{'-'.join(map(str, self.gpus))}-{self.ranks}-{self.starts}"
        self.output, listed = self.folder / f"{stem}.jsonl", self.folder / f"{stem}.json"
        self.log = self.folder / f"{stem}.log"
        self.output.touch()
        listed.write_text(json.dumps(self.jobs))
        spec = RunSpec(model={}, ds_config={}, sequence_length=1, device=self.device, gpus=self.ranks)
        env = {**child_environment(spec, os.environ), PARENT_PID: str(os.getpid()), "OMP_NUM_THREADS": "16"}
        if self.device == "cpu":
            env["OMP_NUM_THREADS"] = "1"
        else:
            env["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, self.gpus))
            env.pop("DSPLAN_VISIBLE_DEVICES", None)
        env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(self.ranks)}
        seconds = str(max(1.0, self.deadline - time.monotonic()))
        command = [sys.executable, "-m", "tests.gpu.regret_rank", self.device, str(listed), str(self.output), seconds]
        self.children = [
            subprocess.Popen(
                command,
                env={**env, "RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_SIZE": str(self.ranks)},
                stdout=self.log.open("ab"),
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            for rank in range(self.ranks)
        ]
        self.seen, self.heard = 0, time.monotonic()
        self.ready = False

    def poll(self) -> bool:
        """Read what there is; start again after a death or a stall. False when the lane is done."""
        if not self.children:
            return False
        lines = self.output.read_text().splitlines(keepends=True)
        for line in lines[self.seen :]:
            if not line.endswith("\n"):
                break
            self.seen, self.heard = self.seen + 1, time.monotonic()
            self.take(json.loads(line))
        alive = [child for child in self.children if child.poll() is None]
        late = time.monotonic() - self.heard > (STALL_S if self.ready else COMPILING_S)
        over = time.monotonic() > self.deadline + 30
        if alive and not late and not over and len(alive) == len(self.children):
            return True
        if any(row.get("status") == "end" for row in self.rows[-3:]) and not over:
            self.end()
            return False
        code = [child.poll() for child in self.children]
        self.end()
        if over:
            return False
        if self.starts > 9:
            print(f"gives up: {self.log.read_text(errors='replace')[-2500:]}", flush=True)
            return False
        print(
            f"restart after {code} {'stall' if late else ''}: {self.log.read_text(errors='replace')[-1500:]}",
            flush=True,
        )
        if self.jobs and self.ready and self.running == _key(self.jobs[0]):  # what killed it would kill it again
            if self.rows[-1].get("status") != "oom":
                self.rows.append({**dict(zip(("setting", "strategy"), self.running, strict=True)), "status": "died"})
            self.jobs.pop(0)
        self.start()
        return bool(self.children)

    running: tuple[str, str] | None = None

    def take(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        job = _key(row)
        if row["status"] == "ready":
            self.ready = True
        elif row["status"] == "started":
            while self.jobs and _key(self.jobs[0]) != job:  # an earlier one had nothing that could fit
                self.jobs.pop(0)
            self.running = job
        elif row["status"] == "done" and self.jobs and _key(self.jobs[0]) == job:
            self.jobs.pop(0)
            self.running = None
        if row["status"] in ("ok", "oom", "error", "done"):
            shown = {key: row[key] for key in ("micro_batch_size", "seconds", "whole_s", "message") if key in row}
            print(f"{row['setting']:20} {row['strategy']:20} {row['status']:6} {shown}", flush=True)

    def end(self) -> None:
        for child in self.children:
            if child.poll() is None:
                child.kill()
            child.wait()
        self.children = []


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("output", type=Path)
    parser.add_argument("--seconds", type=float, default=480)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--set", default="first", choices=list(SETS))
    parser.add_argument("--only-recommended", action="store_true", help="not the ladder of every strategy")
    arguments = parser.parse_args()
    begun = time.monotonic()
    settings = TINY if arguments.tiny else SETS[arguments.set]
    folder = Path(tempfile.mkdtemp(prefix="regret-"))
    single = [setting for setting in settings if setting.ranks == 1]
    several = sorted({setting.ranks for setting in settings} - {1})
    rows: list[dict[str, Any]] = []

    def save() -> None:
        ready = next((row for row in rows if row["status"] == "ready"), {})
        of = "--tiny" if arguments.tiny else f"--set {arguments.set}"
        of += " --only-recommended" if arguments.only_recommended else ""
        head = header(f"{MADE_BY} {of}", ready.get("device", ""), ready.get("versions", {}))
        kept = [row for row in rows if "setting" in row and row["status"] not in ("started", "done")]
        for offset, path in ((0, arguments.output), (1, arguments.output.with_suffix(".unseen.json"))):
            names = [setting.name for setting in settings[offset::2]]
            write_rows(path, head, [row for row in kept if row["setting"] in names])

    until = begun + (SHARE_OF_ONE_RANK if several else 1.0) * arguments.seconds

    def listed_jobs(of: list[Setting]) -> list[Job]:
        found = jobs(of)
        return [job for job in found if job["strategy"] in ASKED] if arguments.only_recommended else found

    lanes = [Lane(listed_jobs(single[index::2]), [index], 1, arguments.device, until, folder) for index in range(2)]
    later = [(ranks, listed_jobs([one for one in settings if one.ranks == ranks])) for ranks in several]  # meanwhile
    done: list[Lane] = []
    while lanes:
        for lane in list(lanes):
            if not lane.poll():
                lanes.remove(lane)
                done.append(lane)
        rows = [row for lane in (*done, *lanes) for row in lane.rows]
        save()
        time.sleep(0.3)
        if not lanes and later:
            (ranks, listed), *later = later
            until = time.monotonic() + (begun + arguments.seconds - time.monotonic()) / (1 + len(later))
            lanes = [Lane(listed, list(range(ranks)), ranks, arguments.device, until, folder)]
    print(f"{sum(row['status'] == 'ok' for row in rows)} measured in {time.monotonic() - begun:.0f} s", flush=True)


if __name__ == "__main__":
    main()
