"""Real ranks on the CPU by the dozen, forked from one process that has imported torch and DeepSpeed.

The ranks are those of a real run: gloo, DeepSpeed's engine, the kernels that it compiles. What is left out is the way
to them, ``python -m runner`` and DeepSpeed's launcher, which costs several times what a small model's steps do; other
tests take it. What a rank changes dies with its process.

``python -m tests.forked_ranks`` is the server: a line of JSON each way.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from runner.environment import child_environment
from runner.spec import RunSpec

ROOT = Path(__file__).parents[1]
TIMEOUT_S = 300.0
LOG_NAME = "ranks.log"


class ForkedRanks:
    """The server, from the first run on until the context is left."""

    def __init__(self) -> None:
        self._server: subprocess.Popen[str] | None = None

    def __enter__(self) -> ForkedRanks:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is not None:
            with self._server as server:  # closes its standard input, at whose end it leaves
                assert server.stdin is not None
                server.stdin.close()

    def run(self, spec: RunSpec, folder: Path) -> list[dict[str, Any]]:
        """The records of the ranks of ``spec``, in rank order; what they wrote and said is in ``folder``.

        Raises:
            AssertionError: a rank left no record; the message ends with the last lines of what they said.
        """
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "spec.json"
        spec.write(path)
        server = self._server = self._server or _started()
        assert server.stdin is not None
        assert server.stdout is not None
        server.stdin.write(json.dumps([str(path), str(folder)]) + "\n")
        server.stdin.flush()
        answer = server.stdout.readline()
        assert answer, "the server of real ranks ended"
        said = (folder / LOG_NAME).read_text(encoding="utf-8", errors="replace")
        assert json.loads(answer) == [0] * spec.gpus, f"exit codes of the ranks: {answer}{said[-3000:]}"
        return [json.loads((folder / f"rank-{rank}.json").read_text(encoding="utf-8")) for rank in spec.ranks]


def _started() -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "ignore", "-m", __name__]
    env = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=ROOT, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _serve() -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # libraries print
    import deepspeed  # noqa: F401
    import torch._dynamo  # noqa: F401  as runner.train does, before DeepSpeed patches torch

    import runner.train  # noqa: F401

    # What was imported stays: a rank's garbage collector need not walk through it.
    gc.collect()
    gc.freeze()
    for line in sys.stdin:
        path, folder = map(Path, json.loads(line))
        answers.write(json.dumps(_forked(RunSpec.read(path), path, folder)) + "\n")
        answers.flush()


def _forked(spec: RunSpec, path: Path, folder: Path) -> list[int]:
    """The exit codes of the ranks: all are ended once one has failed, or when the time is up."""
    from runner.launch import free_port
    from runner.orphan import PARENT_PID

    os.environ.update(child_environment(spec, os.environ))
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(spec.gpus)}
    parent = {PARENT_PID: str(os.getpid())}
    children = []
    for rank in range(spec.gpus):
        child = os.fork()
        if child == 0:
            os.environ.update({**meeting, **parent, "RANK": str(rank), "LOCAL_RANK": str(rank)})
            _rank(path, folder)
        children.append(child)
    return _awaited(children)


def _rank(path: Path, folder: Path) -> None:
    """In the child, which never returns."""
    code = 1
    try:
        log = os.open(folder / LOG_NAME, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.chdir(folder)
        sys.argv = ["runner.train", str(path), str(folder)]
        from runner.train import main

        code = main()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _awaited(children: Sequence[int]) -> list[int]:
    deadline = time.monotonic() + TIMEOUT_S
    codes: dict[int, int] = {}
    while len(codes) < len(children):
        for child in children:
            if child not in codes:
                ended, status = os.waitpid(child, os.WNOHANG)
                if ended:
                    codes[child] = os.waitstatus_to_exitcode(status)
        if any(codes.values()) or time.monotonic() > deadline:
            for child in children:
                if child not in codes:
                    os.kill(child, signal.SIGKILL)
                    codes[child] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        time.sleep(0.02)
    return [codes[child] for child in children]


if __name__ == "__main__":
    _serve()
