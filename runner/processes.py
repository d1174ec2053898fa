"""The launcher's process tree: who is in it, which rank died and of what, and how all of it is ended."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from runner.orphan import alive, processes_of_run

GRACE_S = 3.0  # from SIGTERM to SIGKILL


class ProcessTree:
    """The launcher and its descendants, whoever of them is still there.

    Args:
        launcher: DeepSpeed's launcher; with ``launched=False`` the one rank itself.
        run_id: what all of them have in their environment.
        ranks: the ranks that will be there.

    Attributes:
        exits: what is known of the ranks that have ended, in the order in which they were seen to: rank -> exit
            code, negative for a signal as in ``subprocess``, None where it could not be read.
    """

    def __init__(
        self, launcher: subprocess.Popen[bytes], run_id: str, ranks: Sequence[int], *, launched: bool = True
    ) -> None:
        self._launcher = launcher
        self._run_id = run_id
        self._num_ranks = len(ranks)
        self._ranks: dict[int, psutil.Process] = {}
        self._launched = launched
        if not launched:
            with suppress(psutil.Error):
                self._ranks = {rank: psutil.Process(launcher.pid) for rank in ranks}
        self.exits: dict[int, int | None] = {}

    def observe(self) -> None:
        """Look for ranks that have started or ended."""
        for rank, process in self._ranks.items():
            if rank not in self.exits and not alive(process):
                # Our own child may have been collected by now, and its exit code with it.
                self.exits[rank] = _exit_code(process.pid) if self._launched else self._launcher.poll()
        if len(self._ranks) < self._num_ranks:
            self._find_ranks()

    def dump_stacks(self) -> None:
        """Have every rank write the Python stacks of its threads to the log (``runner.child`` listens)."""
        for process in self._ranks.values():
            with suppress(psutil.Error):
                process.send_signal(signal.SIGUSR1)

    def end(self) -> None:
        """End everything: SIGTERM, a short grace, SIGKILL. Harmless when nothing is left."""
        # The group holds what descends from the launcher; the search, also what has a session of its own.
        known = processes_of_run(self._run_id)
        _signal_group(self._launcher.pid, signal.SIGTERM)
        for process in known:
            with suppress(psutil.Error):
                process.terminate()
        self._wait(known)
        known = processes_of_run(self._run_id)
        _signal_group(self._launcher.pid, signal.SIGKILL)
        for process in known:
            with suppress(psutil.Error):
                process.kill()
        self._wait(known)

    def _wait(self, processes: list[psutil.Process]) -> None:
        deadline = time.monotonic() + GRACE_S
        while time.monotonic() < deadline:
            # poll() also collects the launcher, which would otherwise stay a zombie in its group.
            if self._launcher.poll() is not None and not any(map(alive, processes)):
                return
            time.sleep(0.05)

    def _find_ranks(self) -> None:
        with suppress(psutil.Error):
            descendants = psutil.Process(self._launcher.pid).children(recursive=True)
            for process in sorted(descendants, key=_started):
                rank = _rank(process)
                if rank is not None:
                    self._ranks.setdefault(rank, process)


def _rank(process: psutil.Process) -> int | None:
    """RANK as DeepSpeed's launcher set it. A rank's own children inherit it, but they start later."""
    try:
        return int(process.environ()["RANK"])
    except (psutil.Error, OSError, KeyError, ValueError):
        return None


def _started(process: psutil.Process) -> float:
    try:
        return float(process.create_time())
    except psutil.Error:
        return float("inf")


def _exit_code(pid: int) -> int | None:
    """How a zombie ended: field 52 of /proc/PID/stat, where there is one and nobody has collected it yet."""
    try:
        status = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[49])
        return os.waitstatus_to_exitcode(status)
    except (OSError, ValueError, IndexError):
        return None


def _signal_group(group: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)
