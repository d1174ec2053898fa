"""The runner as a child of the planner: started in a session of its own, told to end, seen to end.

Who needs torch runs in such a process: the planner neither imports it nor dies of it.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from dsplan.errors import MissingExtraError
from dsplan.pythonpath import pythonpath
from dsplan.signals import handled, interrupt

_NEEDED = ("torch", "deepspeed", "psutil")
#: The runner needs a few seconds to end its children.
END_S = 20.0


def require_run_extra(what: str) -> None:
    """Raise MissingExtraError, which begins with ``what`` (a noun), unless what a run needs is installed."""
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtraError(
            f"{what} needs {', '.join(missing)}, not installed for {sys.executable};"
            " install it with: pip install 'dsplan[run]'"
        )


@contextmanager
def supervised(command: Sequence[str], folder: Path, errors: IO[bytes] | int) -> Iterator[subprocess.Popen[bytes]]:
    """The child of ``command``, its stdout a pipe; it has ended when the context does.

    A SIGTERM ends it as Ctrl-C does: left to itself it would leave torch's compile locks behind. Where the context is
    left by an exception the child is told to end, and ended after :data:`END_S` seconds.

    Args:
        command: the program and its arguments.
        folder: where it runs. The current folder comes first on the path of ``python -m`` and may hold a runner package
            of its own.
        errors: what it says on stderr goes there; ``subprocess.STDOUT``: where its other words go.

    Raises:
        KeyboardInterrupt: as it came, once the child has ended.
    """
    process = subprocess.Popen(
        list(command),
        env=_environment(),
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=errors,
        start_new_session=True,
    )
    with process, handled(interrupt, [signal.SIGTERM]):
        try:
            yield process
        except BaseException:
            process.terminate()  # only the runner is told: it ends the ranks
            raise
        finally:
            _await_end(process)


def _await_end(process: subprocess.Popen[bytes]) -> None:
    """See the runner end: it has said its last word, or is cleaning up after having been told to."""
    try:
        process.wait(END_S)
    except (subprocess.TimeoutExpired, KeyboardInterrupt) as error:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # the ranks notice, and end themselves
        if isinstance(error, KeyboardInterrupt):
            raise


def _environment() -> dict[str, str]:
    env = dict(os.environ)
    env["PYTHONPATH"] = pythonpath(("dsplan", "runner"), env.get("PYTHONPATH", ""))
    env["DSPLAN_PARENT_PID"] = str(os.getpid())  # the runner ends itself when this process is gone
    return env
