"""Start one run under DeepSpeed's launcher, follow it, and leave nothing of it behind, however it ends."""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dsplan.errors import RunError
from dsplan.signals import handled
from runner.diagnosis import LOG_NAME, Evidence, failure, timeout
from runner.environment import child_environment
from runner.orphan import PARENT_PID, RUN_ID
from runner.processes import ProcessTree
from runner.progress import ProgressFile
from runner.shared_memory import ADDRESS, forget
from runner.spec import RunSpec

_POLL_S = 0.1
_FAILURE_GRACE_S = 5.0  # for the other ranks to fail as well, once one has; DeepSpeed's launcher would wait 30 s
_TEARDOWN_GRACE_S = 15.0  # for the ranks to leave, once every one has written its record
_STACK_DUMP_S = 0.5
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # what ends a run


def run(
    spec: RunSpec,
    output_dir: Path,
    *,
    timeout_s: float,
    on_progress: Callable[[dict[str, Any]], None],
    module: str = "runner.train",
) -> list[dict[str, Any]]:
    """Run ``module`` once per rank of ``spec`` and return the ranks' records in rank order.

    Everything the run writes is in ``output_dir``: the specification, the log, the records, the progress.
    ``on_progress`` is given the events of rank 0 as they come.

    Raises:
        RunError: a rank ran out of memory, crashed or was killed, or ``timeout_s`` passed; the message says
            which rank and where, and ends with the last lines of the log.
        KeyboardInterrupt: as it came. In every case all descendants have ended when this returns.
    """
    output_dir = output_dir.absolute()
    output_dir.mkdir(parents=True, exist_ok=True)
    _remove_earlier(output_dir)
    spec.write(output_dir / "spec.json")
    env = child_environment(spec, os.environ)
    env[PARENT_PID] = str(os.getpid())
    env[RUN_ID] = uuid.uuid4().hex
    port = free_port()
    on_progress({"event": "stage", "text": _starting(spec)})
    with (output_dir / LOG_NAME).open("wb") as log:
        launcher: subprocess.Popen[bytes] | None = None
        try:
            with _signals_wait() as arrived:
                launcher = subprocess.Popen(
                    _command(spec, output_dir, module, port),
                    env=env,
                    # The current folder comes first on the path of `python -m`, and may hold a runner or mingpt of
                    # its own.
                    cwd=output_dir,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
                tree = ProcessTree(launcher, env[RUN_ID], spec.ranks, launched=spec.rank is None)
            if arrived:
                raise KeyboardInterrupt
            error = _follow(launcher, tree, spec, output_dir, timeout_s=timeout_s, on_progress=on_progress)
        finally:
            if launcher is not None:
                with _deaf():
                    tree.end()
                    launcher.wait()
                    forget(port, spec.ranks)
    if error is not None:
        raise error
    return [json.loads(path.read_text(encoding="utf-8")) for path in record_paths(output_dir, spec.ranks)]


def record_paths(output_dir: Path, ranks: Sequence[int]) -> list[Path]:
    """Where the ranks write their records, in that order."""
    return [output_dir / f"rank-{rank}.json" for rank in ranks]


def _follow(
    launcher: subprocess.Popen[bytes],
    tree: ProcessTree,
    spec: RunSpec,
    output_dir: Path,
    *,
    timeout_s: float,
    on_progress: Callable[[dict[str, Any]], None],
) -> RunError | None:
    """Wait for the run to end or to be hopeless; None when every record is there, else the error to raise."""
    progress = ProgressFile(output_dir / f"progress-{spec.ranks[0]}.jsonl")
    deadline = time.monotonic() + timeout_s
    patience: float | None = None  # until when a run that is done or failing may take to end by itself
    while True:
        evidence = Evidence(output_dir=output_dir, ranks=spec.ranks, launcher_code=launcher.poll(), exits=tree.exits)
        tree.observe()
        for event in progress.new_events():
            on_progress(event)
        now = time.monotonic()
        done, failing = not evidence.missing(), evidence.failing()
        if patience is None and (done or failing):
            patience = now + (_TEARDOWN_GRACE_S if done else _FAILURE_GRACE_S)
        if evidence.launcher_code is not None or now > deadline or (patience is not None and now > patience):
            break
        time.sleep(_POLL_S)
    if done:
        return None
    if evidence.launcher_code is not None or failing:
        return failure(evidence)
    tree.dump_stacks()
    time.sleep(_STACK_DUMP_S)
    # The last record may have been written meanwhile.
    return timeout(evidence, timeout_s) if evidence.missing() else None


def _starting(spec: RunSpec) -> str:
    return "starting DeepSpeed's launcher" if spec.rank is None else "starting the dry run"


def _command(spec: RunSpec, output_dir: Path, module: str, port: int) -> list[str]:
    child = ["runner.child", module, str(output_dir / "spec.json"), str(output_dir)]
    if spec.rank is not None:  # one process, which nobody has to bring together with others
        return [sys.executable, "-m", *child]
    # What `deepspeed --num_gpus N` starts on one node (deepspeed/launcher/runner.py, main), which imports torch first;
    # and where it finds a /job/hostfile, it would send the ranks elsewhere, over ssh.
    world = base64.urlsafe_b64encode(json.dumps({"localhost": list(range(spec.gpus))}).encode()).decode()
    launcher = [sys.executable, "-m", "deepspeed.launcher.launch", f"--world_info={world}"]
    launcher += ["--master_addr", ADDRESS, "--master_port", str(port), "--no_local_rank", "--module"]
    return [*launcher, *child]


def free_port() -> int:
    """A TCP port that nobody listens on just now."""
    with socket.socket() as listener:
        listener.bind(("", 0))
        return int(listener.getsockname()[1])


def _remove_earlier(output_dir: Path) -> None:
    for pattern in ("rank-*.json", "failure-*.json", "progress-*.jsonl"):
        for path in output_dir.glob(pattern):
            path.unlink()


@contextmanager
def _signals_wait() -> Iterator[list[int]]:
    """Note the signals that arrive meanwhile: raised inside Popen, they would lose a process that has started."""
    arrived: list[int] = []
    with handled(lambda number, _: arrived.append(number), _ENDING):
        yield arrived


@contextmanager
def _deaf() -> Iterator[None]:
    """Let no second Ctrl-C or SIGTERM break off the cleaning up, which takes a few seconds at most."""
    with handled(signal.SIG_IGN, _ENDING):
        yield
