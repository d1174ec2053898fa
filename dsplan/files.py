"""Writing files that are either complete or not there; reading files that may have no end."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from dsplan.errors import InputError


def read_at_most(path: Path, size_bytes: int) -> bytes | None:
    """What is in ``path``; None where that is more than ``size_bytes``.

    A device or pipe does not say its size beforehand, and may have no end.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        content = file.read(size_bytes + 1)
    return None if len(content) > size_bytes else content


def write_text(path: Path | str, text: str, *, force: bool) -> None:
    """Write ``text`` to ``path`` as UTF-8, atomically.

    Raises:
        InputError: as :func:`atomic_file`.
    """
    with atomic_file(Path(path), force=force) as file:
        file.write(text.encode())


@contextmanager
def atomic_file(path: Path, *, force: bool) -> Iterator[BinaryIO]:
    """A file that becomes ``path`` when all has been written to it.

    It is a temporary file in the same folder, which then takes the name: a reader sees the old file or the new one,
    and an interrupted write leaves neither half. Where ``path`` is a symbolic link, the file that it leads to is
    written, and the link stays.

    Raises:
        InputError: ``path`` exists and ``force`` is False; it is a folder, or a device or pipe, which a rename would
            remove; its folder is missing or cannot be written.
    """
    require_target(path, force=force)
    target = Path(os.path.realpath(path))
    temporary: str | None = None
    try:
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp")
        with os.fdopen(handle, "wb") as file:
            yield file
        # mkstemp makes the file private; a configuration is to be read by the job that uses it.
        Path(temporary).chmod(0o666 & ~_umask())
        Path(temporary).replace(target)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            with suppress(OSError):
                Path(temporary).unlink()


def require_target(path: Path, *, force: bool) -> None:
    """Raise InputError unless a file may be written at ``path``: to be asked before the work that fills it."""
    if str(path) == "-":
        raise InputError("-: is no name for a file; to write to standard output leave the option out, or see --help")
    if path.is_dir():
        raise InputError(f"{path}: is a folder; name a file in it")
    if path.exists() and not path.is_file():
        raise InputError(f"{path}: is a device or a pipe, not a file; name a file")
    folder = path.parent
    if path.is_symlink():
        target = Path(os.path.realpath(path))  # not resolve(), which raises where links go in a circle
        if target.is_symlink():
            raise InputError(f"{path}: is a link in a circle, which leads to no file")
        folder = target.parent
    if not folder.is_dir():
        raise InputError(f"{path}: the folder {folder} does not exist; make it first")
    if not os.access(folder, os.W_OK):
        raise InputError(f"{path}: cannot be written: {folder} is a folder in which you may not write")
    if path.exists() and not force:
        raise InputError(f"{path}: exists already; choose another name or overwrite it with --force")


def _umask() -> int:
    # The mask can only be read by setting it.
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
