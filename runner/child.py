"""What every rank does before its own module: ``python -m runner.child MODULE ARGUMENT...``."""

from __future__ import annotations

import faulthandler
import os
import runpy
import signal
import sys
from types import FrameType

from runner.environment import SHARED_DEVICES, VISIBLE_DEVICES
from runner.orphan import exit_with_parent
from runner.sharing import shared_environment


def main() -> None:
    exit_with_parent()
    # As an exception, so that `finally` runs: torch removes the lock of an operator that is being compiled, for
    # which every later run would wait for ever.
    signal.signal(signal.SIGTERM, _leave)
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1)  # sent before a run that takes too long is ended: the log shows where it hung
    if VISIBLE_DEVICES in os.environ:
        os.environ["CUDA_VISIBLE_DEVICES"] = os.environ[VISIBLE_DEVICES]
    if SHARED_DEVICES in os.environ:
        os.environ.update(shared_environment(int(os.environ["RANK"]), int(os.environ[SHARED_DEVICES]), os.environ))
    module = sys.argv.pop(1)
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _leave(number: int, _frame: FrameType | None) -> None:
    # Once only: the group and the process are both told, and a second exception would break off a `finally`.
    signal.signal(number, signal.SIG_IGN)
    sys.exit(128 + number)


if __name__ == "__main__":
    main()
