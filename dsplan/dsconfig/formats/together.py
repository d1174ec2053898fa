"""Writing several files: all of them, or none."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from dsplan.dsconfig.formats.target import EmittedFile
from dsplan.errors import InputError
from dsplan.files import require_target, write_text


def require_targets(paths: Sequence[Path], *, force: bool) -> None:
    """Raise InputError unless every file may be written; to be asked before the work that fills them."""
    for position, path in enumerate(paths):
        if path in paths[:position]:
            raise InputError(f"{path}: two of the files that belong together would have this name; choose another one")
        require_target(path, force=force)


def write_together(files: Sequence[EmittedFile], *, force: bool) -> None:
    """Write every file, each atomically; when one cannot be written, those before it are as they were.

    Raises:
        InputError: a file exists and ``force`` is False, or cannot be written.
    """
    require_targets([file.path for file in files], force=force)
    before: list[tuple[Path, bytes | None]] = []
    try:
        for file in files:
            old = file.path.read_bytes() if file.path.exists() else None
            write_text(file.path, file.content, force=force)
            before.append((file.path, old))
    except BaseException as error:
        for path, old in before:
            with suppress(OSError):
                path.unlink() if old is None else path.write_bytes(old)
        if isinstance(error, OSError):
            raise InputError(f"{error.filename}: cannot be read: {error.strerror or error}") from error
        raise
