"""Reading the lines of events that a dry run has written."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

#: One line; see :mod:`dsplan.events` for its keys.
Event = dict[str, Any]


def read_events(path: Path) -> Iterator[Event]:
    """The events in order; a last line that a run which died has not finished is left out."""
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            if line.endswith("\n"):
                yield json.loads(line)
