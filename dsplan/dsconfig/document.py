"""A configuration file as a dictionary: JSON, or Hjson, which DeepSpeed reads it with.

Sources: DeepSpeed ``runtime/config.py`` (``DeepSpeedConfig.__init__``: ``hjson.load`` with
``dict_raise_error_on_duplicate_keys``); accelerate ``utils/deepspeed.py`` (``HfDeepSpeedConfig.__init__``, which
transformers' Trainer uses too: ``json.load``); Lightning ``strategies/deepspeed.py`` (``_load_config``: ``json.load``).
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from dsplan.dsconfig.consumers import CONSUMER_NAMES, DEEPSPEED
from dsplan.errors import InputError

#: Bytes of the largest file that is read: configurations have a few thousand.
LARGEST_FILE = 4 * 1024**2
_JSON_NAMES = {list: "a list", str: "a string", bool: "a truth value", int: "a number", float: "a number"}


def load_document(path: Path, consumer: str = DEEPSPEED) -> dict[str, Any]:
    """The configuration in ``path``, as ``consumer`` (:data:`dsplan.dsconfig.consumers.CONSUMERS`) reads the file.

    Raises:
        InputError: the file is missing, empty, too large or not text; it is neither JSON nor Hjson (with line and
            column of the JSON error), or Hjson where the consumer reads JSON; a key is given twice; a number is NaN or
            infinite; the outermost value is not an object.
    """
    text = _text(path)
    if not text.strip():
        raise InputError(f"{path}: is empty")  # Hjson would take it for an empty object
    document = _parse(path, text, consumer)
    if not isinstance(document, dict):
        raise InputError(f"{path}: must hold an object {{...}}, not {_JSON_NAMES.get(type(document), 'null')}")
    return document


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_FILE + 1)
        if len(content) > LARGEST_FILE:
            raise InputError(f"{path}: is too large for a configuration; at most {LARGEST_FILE:,} bytes")
        return content.decode("utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 text (byte {error.start})") from error


def _parse(path: Path, text: str, consumer: str) -> Any:
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

    # Hjson recovers late and reports the end of the file; JSON stops where the mistake is.
    where = f"{path}: line {json_error.lineno}, column {json_error.colno}: not JSON: {json_error.msg}"
    try:
        document = hjson.loads(text, object_pairs_hook=unique)
    except hjson.HjsonDecodeError:
        raise InputError(where) from json_error
    if consumer != DEEPSPEED:
        raise InputError(
            f"{where}; DeepSpeed itself would read this file (Hjson: comments, missing quotes), "
            f"{CONSUMER_NAMES[consumer]} does not"
        ) from json_error
    return document
