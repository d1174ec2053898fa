"""Spread: work on several processes, as ``map`` does on one."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from dsplan.signals import handled, interrupt

Item = TypeVar("Item")
Result = TypeVar("Result")


class _Work:
    """What the processes work on. They are forked with it, so that neither it nor the items have to be pickled."""

    function: Callable[[Any], Any]
    items: Sequence[Any]


def spread(function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    """``map(function, items)`` on as many processes as there are :func:`cores`; results in order, as they come.

    What ``function`` shows or counts is that of its own process. Interrupted, or ended by SIGTERM, none is left behind.
    """
    jobs = min(len(items), cores())
    if jobs <= 1:
        yield from map(function, items)
        return
    import multiprocessing  # takes 10 ms, which most commands do without

    _Work.function, _Work.items = staticmethod(function), items
    with (
        handled(interrupt, [signal.SIGTERM]),
        multiprocessing.get_context("fork").Pool(jobs, initializer=_leave_signals) as pool,
    ):
        yield from pool.imap(_one, range(len(items)))


def cores() -> int:
    """Processes that can work at once; 1 where none can be forked: macOS's own libraries do not survive a fork."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else 1


def _leave_signals() -> None:
    """Ctrl-C reaches every process of a terminal; the first one ends the others."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _one(number: int) -> Any:
    return _Work.function(_Work.items[number])
