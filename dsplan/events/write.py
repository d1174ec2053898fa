"""The events of a dry run as the file that was asked for; its suffix says which kind."""

from __future__ import annotations

import gzip
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from dsplan.errors import InputError
from dsplan.events.read import read_events
from dsplan.events.snapshot import snapshot
from dsplan.events.timeline import timeline_svg
from dsplan.files import atomic_file, require_target


def require_kind(target: Path, *, force: bool) -> None:
    """Raise InputError for a suffix that is no kind of events, or a file that may not be written."""
    _writer(target)
    require_target(target, force=force)


def write_events(source: Path, target: Path, title: str, *, force: bool) -> None:
    """Write what the run left in ``source`` to ``target``, whole or not at all.

    Raises:
        InputError: as :func:`require_kind`.
    """
    writer = _writer(target)
    with atomic_file(target, force=force) as file:
        writer(source, file, title)


def _lines(source: Path, file: BinaryIO, title: str) -> None:  # noqa: ARG001
    with source.open("rb") as lines:
        shutil.copyfileobj(lines, file)


def _compressed(source: Path, file: BinaryIO, title: str) -> None:
    with gzip.GzipFile(fileobj=file, mode="wb", filename="", mtime=0) as compressed:
        _lines(source, compressed, title)  # type: ignore[arg-type]


def _pickled(source: Path, file: BinaryIO, title: str) -> None:  # noqa: ARG001
    pickle.dump(snapshot(read_events(source)), file)


def _drawn(source: Path, file: BinaryIO, title: str) -> None:
    file.write(timeline_svg(read_events(source), title).encode())


_WRITERS: dict[str, Callable[[Path, BinaryIO, str], None]] = {
    ".jsonl": _lines,
    ".jsonl.gz": _compressed,
    ".pickle": _pickled,
    ".svg": _drawn,
}


def _writer(target: Path) -> Callable[[Path, BinaryIO, str], None]:
    for suffix, writer in _WRITERS.items():
        if target.name.endswith(suffix):
            return writer
    raise InputError(
        f"--events: {target} has none of the suffixes {', '.join(_WRITERS)}: lines of JSON, torch's memory snapshot, "
        "or a picture"
    )
