"""The configurations in a file, whatever its kind."""

from __future__ import annotations

from pathlib import Path

from dsplan.check.configuration import Run
from dsplan.check.contents import Source, no_text, read_plain, read_text

_YAML = (".yaml", ".yml")


def read_source(path: Path, run: Run) -> Source:
    """The configurations in ``path``.

    Raises:
        InputError: there is no such file, it is a folder, or it is too large.
    """
    if path.suffix.lower() not in _YAML:
        return read_plain(path, run)
    from dsplan.check.accelerate_yaml import read_accelerate

    text = read_text(path)
    return no_text(path, run) if text is None else read_accelerate(path, text, run)
