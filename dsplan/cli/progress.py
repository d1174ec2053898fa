"""A progress bar for what takes long enough to wonder about: on standard error, on a terminal only."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

#: Work that is done sooner shows no bar, and does not pay for the import of one.
DELAY_SECONDS = 0.5


class Progress:
    """Work that tells how far it is: ``progress(done, total)``, and between two such calls in words.

    Nothing is drawn before :data:`DELAY_SECONDS`, or where standard error is no terminal.
    """

    def __init__(self, description: str) -> None:
        self._description = description
        self._begun = time.monotonic()
        self._shows = sys.stderr.isatty()
        self._bar: _Bar | None = None
        self._done, self._total = 0, 1

    def __call__(self, done: int, total: int) -> None:
        self._done, self._total = done, total
        self._show(self._description)

    def say(self, text: str) -> None:
        """What is being worked on, such as the rung of a ladder."""
        self._show(f"{self._description}: {text}")

    def stop(self) -> None:
        """Take the bar off the screen."""
        if self._bar is not None:
            self._bar.stop()

    def _show(self, text: str) -> None:
        if not self._shows:
            return
        if self._bar is None and time.monotonic() - self._begun >= DELAY_SECONDS:
            self._bar = _Bar(self._description)
        if self._bar is not None:
            self._bar.show(text, self._done, self._total)


@contextmanager
def progress(description: str) -> Iterator[Progress]:
    """A bar for the work inside, removed at its end."""
    found = Progress(description)
    try:
        yield found
    finally:
        found.stop()


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

    def show(self, text: str, done: int, total: int) -> None:
        self._progress.update(self._task, description=text, completed=done, total=total)

    def stop(self) -> None:
        self._progress.stop()
