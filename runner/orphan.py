"""No orphans: a child ends itself when the process that started the run has disappeared, however it died."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import suppress

import psutil

from dsplan.errors import EXIT_INTERRUPTED

PARENT_PID = "DSPLAN_PARENT_PID"
RUN_ID = "DSPLAN_RUN_ID"  # inherited by every descendant, also by one in another session whose parent has gone
_THREAD_NAME = "exit-with-parent"


def exit_with_parent(*, interval_s: float = 0.5) -> None:
    """End this process, its run, its descendants and its process group once the process DSPLAN_PARENT_PID is gone.

    Without the variable, or when called again, it does nothing. The group is ended only where it is not also
    the parent's: the run was started in a session of its own.
    """
    value = os.environ.get(PARENT_PID, "")
    if not value.isdigit() or any(thread.name == _THREAD_NAME for thread in threading.enumerate()):
        return
    parent: psutil.Process | None = None
    own_group = False
    # Not getppid(): DeepSpeed's launcher stands between the parent and a rank. A psutil.Process knows when its
    # process started, so that a number given to a new process is not taken for the parent.
    with suppress(psutil.NoSuchProcess, ProcessLookupError):
        parent = psutil.Process(int(value))
        own_group = os.getsid(parent.pid) != os.getsid(0)
    threading.Thread(target=_watch, args=(parent, own_group, interval_s), name=_THREAD_NAME, daemon=True).start()


def alive(process: psutil.Process) -> bool:
    """Whether ``process`` still runs; a zombie, which only waits to be collected, does not."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def processes_of_run(run_id: str) -> list[psutil.Process]:
    """The processes of this user that inherited ``run_id``, this one left out."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and process.environ().get(RUN_ID) == run_id:
                found.append(process)
    return found


def _watch(parent: psutil.Process | None, own_group: bool, interval_s: float) -> None:
    while parent is not None and alive(parent):
        time.sleep(interval_s)
    run_id = os.environ.get(RUN_ID)
    doomed = processes_of_run(run_id) if run_id else []
    with suppress(psutil.Error):
        doomed += psutil.Process().children(recursive=True)
    for process in doomed:
        with suppress(psutil.Error):
            process.kill()
    if own_group:
        os.killpg(os.getpgrp(), signal.SIGKILL)
    os._exit(EXIT_INTERRUPTED)
