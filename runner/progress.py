"""Follow a file of JSON lines that another process is writing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class ProgressFile:
    """The events of one rank, given out once each; the file may not be there yet."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def new_events(self) -> list[dict[str, Any]]:
        """The events on the lines completed since the last call; a broken line is left out."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                complete, newline, _ = file.read().rpartition(b"\n")
        except FileNotFoundError:
            return []
        self._offset += len(complete) + len(newline)
        events = (_event(line) for line in complete.splitlines())
        return [event for event in events if event is not None]


def _event(line: bytes) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) else None
