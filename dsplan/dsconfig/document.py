"""A configuration file as a dictionary: JSON, or Hjson, which DeepSpeed reads it with.

Sources: DeepSpeed ``runtime/config.py`` (``DeepSpeedConfig.__init__``: ``hjson.load`` with
``dict_raise_error_on_duplicate_keys``); accelerate ``utils/deepspeed.py`` (``HfDeepSpeedConfig.__init__``, which
transformers' Trainer uses too: ``json.load``); Lightning ``strategies/deepspeed.py`` (``_load_config``: ``json.load``).
"""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

from dsplan.dsconfig.batch import ACCUMULATION, MICRO_BATCH, TRAIN_BATCH
from dsplan.dsconfig.consumers import CONSUMER_NAMES, DEEPSPEED
from dsplan.errors import InputError
from dsplan.files import read_at_most

#: Bytes of the largest file that is read: configurations have a few thousand.
LARGEST_FILE = 4 * 1024**2
#: Up to which Hjson makes a whole number of a float that is one.
_LARGEST_WHOLE = 1e10
_JSON_NAMES = {list: "a list", str: "a string", bool: "a truth value", int: "a number", float: "a number"}


def load_document(path: Path, consumer: str = DEEPSPEED) -> dict[str, Any]:
    """The configuration in ``path``, as ``consumer`` (:data:`dsplan.dsconfig.consumers.CONSUMERS`) reads the file.

    Raises:
        InputError: the file is missing, empty, too large or not text; it is neither JSON nor Hjson (with line and
            column of the JSON error), or Hjson where the consumer reads JSON; a key is given twice; a number is NaN or
            infinite; the outermost value is not an object.
    """
    text = _text(path)
    _refuse_yaml(path, text)
    if not text.strip():
        raise InputError(f"{path}: is empty")  # Hjson would take it for an empty object
    document = _parse(path, text, consumer)
    if not isinstance(document, dict):
        raise InputError(f"{path}: must hold an object {{...}}, not {_JSON_NAMES.get(type(document), 'null')}")
    return _with_whole_counts(document) if consumer == DEEPSPEED else document


def _with_whole_counts(document: dict[str, Any]) -> dict[str, Any]:
    """Batch sizes such as 2.0 as DeepSpeed's reader has them (hjson ``decoder.py``, ``scantfnns``), not json.load."""
    whole = {
        key: int(value)
        for key in (TRAIN_BATCH, MICRO_BATCH, ACCUMULATION)
        if isinstance(value := document.get(key), float) and value.is_integer() and abs(value) < _LARGEST_WHOLE
    }
    return {**document, **whole}


def _refuse_yaml(path: Path, text: str) -> None:
    """accelerate's file says where the configuration is; Hjson would take every line of it for a key."""
    if path.suffix.lower() not in (".yaml", ".yml") or text.lstrip("\ufeff \t\r\n").startswith("{"):
        return
    named = re.search(r"^[ \t]+deepspeed_config_file:[ \t]*(\S+)", text, re.MULTILINE)
    what = "a configuration in JSON" if named is None else f"the file that it names, {named.group(1)}"
    raise InputError(
        f"{path}: is YAML, and no DeepSpeed configuration; give {what} (dsplan check reads accelerate's YAML)"
    )


def _text(path: Path) -> str:
    try:
        content = read_at_most(path, LARGEST_FILE)
        if content is None:
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
