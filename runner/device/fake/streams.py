"""Streams and events that keep their order and nothing else: all that is asked of them is done at once."""

from __future__ import annotations

import itertools
import math
from typing import Any

from runner.device.fake.memory import Memory


class Stream:
    """A stream of the pretend device; as a context it is the current one."""

    def __init__(self, streams: Streams, number: int) -> None:
        self._streams = streams
        self.stream_id = number
        self._entered: list[Stream] = []

    def __enter__(self) -> Stream:
        self._entered.append(self._streams.current)
        self._streams.current = self
        return self

    def __exit__(self, *_: object) -> None:
        self._streams.current = self._entered.pop()

    def wait_stream(self, stream: Stream) -> None:
        """Order between streams takes no memory."""

    def wait_event(self, event: Event) -> None:
        """As wait_stream."""

    def record_event(self, event: Event | None = None) -> Event:
        return event or Event()

    def synchronize(self) -> None:
        """Everything is done when it is asked for."""

    def query(self) -> bool:
        return True


class Event:
    """An event, which has always happened."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def record(self, stream: Stream | None = None) -> None:
        """Nothing is under way."""

    def wait(self, stream: Stream | None = None) -> None:
        """As record."""

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        """As record."""

    def elapsed_time(self, _: Event) -> float:
        """No number: time is not modelled, and DeepSpeed's profilers divide by it."""
        return math.nan


class Streams:
    """The streams of one device, of which one is current: what is allocated meanwhile belongs to it."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._numbers = itertools.count()
        self.default = self.new()
        self._current = self.default

    def new(self, *_: Any, **__: Any) -> Stream:
        return Stream(self, next(self._numbers))

    @property
    def current(self) -> Stream:
        return self._current

    @current.setter
    def current(self, stream: Stream) -> None:
        self._current = stream
        self._memory.stream = stream.stream_id
