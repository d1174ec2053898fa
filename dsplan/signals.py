"""Another handler for some signals, for a while."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

Handler = Callable[[int, FrameType | None], Any] | signal.Handlers


@contextmanager
def handled(handler: Handler, numbers: Iterable[signal.Signals]) -> Iterator[None]:
    """Have ``handler`` take the signals meanwhile. Only the main thread has handlers: in any other nothing happens."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    earlier = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, before in earlier.items():
            signal.signal(number, before)


def interrupt(_number: int, _frame: FrameType | None) -> None:
    """End what runs as Ctrl-C does."""
    raise KeyboardInterrupt
