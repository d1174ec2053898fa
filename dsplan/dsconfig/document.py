"""A configuration file as a dictionary: JSON, or Hjson, which DeepSpeed reads it with.

Source: DeepSpeed ``runtime/config.py`` (``DeepSpeedConfig.__init__``: ``hjson.load`` with
``dict_raise_error_on_duplicate_keys``).
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from dsplan.errors import InputError


def load_document(path: Path) -> dict[str, Any]:
    """The configuration in ``path``.

    Raises:
        InputError: the file is missing, empty or not text; it is neither JSON nor Hjson (with line and
            column of the JSON error); a key is given twice; a number is NaN or infinite; the
            outermost value is not an object.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 text (byte {error.start})") from error
    if not text.strip():
        raise InputError(f"{path}: is empty")  # Hjson would take it for an empty object
    document = _parse(path, text)
    if not isinstance(document, dict):
        raise InputError(f"{path}: must hold an object {{...}}, not {type(document).__name__}")
    return document


def _parse(path: Path, text: str) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        twice = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
        if twice:
            raise InputError(f"{path}: {twice[0]!r} is given twice in the same section; keep one")
        return dict(pairs)

    def finite(constant: str) -> Any:
        raise InputError(f"{path}: {constant} is not a number that a configuration can hold")

    try:
        return json.loads(text, object_pairs_hook=unique, parse_constant=finite)
    except json.JSONDecodeError as error:
        json_error = error
    except RecursionError as error:
        raise InputError(f"{path}: is nested too deeply") from error
    except ValueError as error:  # of int(), which takes 4,300 digits
        raise InputError(f"{path}: a number in it is too long") from error

    import hjson  # only needed for the rare file with comments or without quotes

    try:
        return hjson.loads(text, object_pairs_hook=unique)
    except hjson.HjsonDecodeError:
        # Hjson recovers late and reports the end of the file; JSON stops where the mistake is.
        raise InputError(
            f"{path}: line {json_error.lineno}, column {json_error.colno}: not JSON: {json_error.msg}"
        ) from json_error
