"""What a file of measurements begins with: by which command, when, on what and with what its rows were made."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

#: The keys of a header; a file has its rows beside them.
KEYS = ("made_by", "created", "device", "versions")


def header(made_by: str, device: str, versions: Mapping[str, str]) -> dict[str, Any]:
    """The header of what is measured now.

    Args:
        made_by: the command.
        device: its name as the driver has it; empty as long as none has said it.
        versions: by name, of torch and DeepSpeed at least.
    """
    created = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return {"made_by": made_by, "created": created, "device": device, "versions": dict(versions)}


def write_rows(path: Path, head: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], *, key: str = "rows") -> None:
    """Write ``rows`` under ``key``, one to a line, after their header; whole or not at all."""
    begin = json.dumps(dict(head), separators=(", ", ": "))[:-1]
    lines = ",\n".join(json.dumps(dict(row), separators=(",", ":")) for row in rows)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(f'{begin}, "{key}": [\n{lines}\n]}}\n', encoding="utf-8")
    temporary.replace(path)


def read_rows(path: Path, *, key: str = "rows") -> list[dict[str, Any]]:
    """The rows of a file."""
    document = json.loads(path.read_text(encoding="utf-8"))
    rows: list[dict[str, Any]] = document[key]
    return rows
