"""A progress bar for what takes long enough to wonder about: on standard error, on a terminal only."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

#: Work that is done sooner shows no bar, and does not pay for the import of one.
DELAY_SECONDS = 0.5


@contextmanager
def progress(description: str) -> Iterator[Callable[[int, int], None]]:
    """A callback ``(done, total)`` that draws a bar once the work has taken :data:`DELAY_SECONDS`."""
    if not sys.stderr.isatty():
        yield lambda _done, _total: None
        return
    begun = time.monotonic()
    bar: _Bar | None = None

    def advance(done: int, total: int) -> None:
        nonlocal bar
        if bar is None and time.monotonic() - begun >= DELAY_SECONDS:
            bar = _Bar(description)
        if bar is not None:
            bar.show(done, total)

    try:
        yield advance
    finally:
        if bar is not None:
            bar.stop()


@contextmanager
def waiting(description: str) -> Iterator[None]:
    """A spinner while a single call runs that cannot say how far it is."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(description):
        yield


class _Bar:
    """rich's bar, removed from the screen when it stops."""

    def __init__(self, description: str) -> None:
        from rich.console import Console
        from rich.progress import Progress

        self._progress = Progress(console=Console(stderr=True), transient=True)
        self._task = self._progress.add_task(description)
        self._progress.start()

    def show(self, done: int, total: int) -> None:
        self._progress.update(self._task, completed=done, total=total)

    def stop(self) -> None:
        self._progress.stop()
