"""The ranks of a calibration, as their parent sees them: started together, told when to begin, followed, ended.

All ranks of all parts are started at once and import torch and DeepSpeed at the same time; then they wait for a file
each part has of its own, so that only those measure whose turn it is.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from dsplan.errors import EXIT_RUN_FAILED, EXIT_TIMEOUT, RunError
from runner.environment import child_environment
from runner.launch import free_port
from runner.orphan import PARENT_PID
from runner.processes import GRACE_S
from runner.spec import RunSpec

#: What rank 0 writes of a part that is done or left out, and of an operator that has to be compiled.
_TOLD = re.compile(r" rows, |: no time for |^(compiling|waiting for another process)")
_POLL_S = 0.1


class Ranks:
    """``ranks`` processes of ``command``, which wait until :meth:`follow`.

    Args:
        command: a function of the document that rank 0 writes and of the file that the ranks wait for.
        device: ``cuda`` or ``cpu``.
        ranks: how many.
        folder: theirs; each writes ``ready-RANKS-RANK`` there once it has imported.
    """

    def __init__(
        self, command: Callable[[Path, Path], Sequence[str]], *, device: str, ranks: int, folder: Path
    ) -> None:
        self._output, self._log = folder / f"ranks-{ranks}.json", folder / f"ranks-{ranks}.log"
        self._turn = folder / f"turn-{ranks}"
        self._ready = [folder / f"ready-{ranks}-{rank}" for rank in range(ranks)]
        env = environment(device, ranks)
        with self._log.open("wb") as sink:
            self._children = [
                start(
                    command(self._output, self._turn),
                    {**env, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                    folder,
                    sink,
                )
                for rank in range(ranks)
            ]

    @property
    def waiting(self) -> bool:
        """Whether all have imported what they need, or one has failed, which :meth:`follow` tells."""
        return any(child.poll() is not None for child in self._children) or all(path.exists() for path in self._ready)

    def follow(
        self, say: Callable[[str], None], changed: Callable[[dict[str, Any]], None], *, deadline: float
    ) -> dict[str, Any]:
        """Let them measure until all have ended; what rank 0 wrote.

        Args:
            say: called with what rank 0 says of each part.
            changed: called with what it has written until then.
            deadline: by time.monotonic().

        Raises:
            RunError: a rank failed, or ``deadline`` passed; its last lines are in the message.
        """
        self._turn.touch()
        for line in self._lines(deadline):
            say(line)
            if self._output.exists():
                changed(json.loads(self._output.read_text(encoding="utf-8")))
        document: dict[str, Any] = json.loads(self._output.read_text(encoding="utf-8"))
        return document

    def end(self) -> None:
        """End those that still run."""
        end(self._children)

    def _lines(self, deadline: float) -> Iterator[str]:
        told = 0
        while True:
            ended = all(child.poll() is not None for child in self._children)
            broken = any(child.returncode for child in self._children)
            lines = [line for line in self._log.read_text(errors="replace").splitlines() if _TOLD.search(line)]
            yield from lines[told:]
            told = len(lines)
            if broken:
                raise RunError(f"calibration: a rank failed; its last lines:\n{self._tail()}", EXIT_RUN_FAILED)
            if ended:
                return
            if time.monotonic() > deadline:
                raise RunError(f"calibration: did not end in time; its last lines:\n{self._tail()}", EXIT_TIMEOUT)
            time.sleep(_POLL_S)

    def _tail(self) -> str:
        return self._log.read_text(errors="replace")[-2000:]


def environment(device: str, ranks: int) -> dict[str, str]:
    """What ``ranks`` processes on ``device`` have in common; their number within is still to be added."""
    spec = RunSpec(model={}, ds_config={}, sequence_length=1, device=device, gpus=ranks)
    env = {**child_environment(spec, os.environ), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    return env | {PARENT_PID: str(os.getpid()), "WORLD_SIZE": str(ranks), "LOCAL_SIZE": str(ranks)}


def start(command: Sequence[str], env: dict[str, str], folder: Path, sink: Any) -> subprocess.Popen[bytes]:
    """A process in a session of its own whose words go to ``sink``."""
    return subprocess.Popen(
        list(command),
        env=env,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=sink,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def end(children: Sequence[subprocess.Popen[bytes]]) -> None:
    """End those that still run: told first, since one that compiles removes torch's lock then (``runner.child``)."""
    for child in children:
        child.terminate()
    patience = time.monotonic() + GRACE_S
    for child in children:
        with suppress(subprocess.TimeoutExpired):
            child.wait(max(0.0, patience - time.monotonic()))
        if child.poll() is None:
            child.kill()
        child.wait()
