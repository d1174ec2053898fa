"""Checking JSON records against the schemas that ship with dsplan, and reading them from files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsplan.errors import InputError
from dsplan.files import read_at_most
from dsplan.schemas import schema

if TYPE_CHECKING:
    from jsonschema.exceptions import ValidationError

#: Bytes of the largest record that is read: one of a dry run with every term has some hundred thousand.
LARGEST_FILE = 64 * 1024**2

#: The schemas that other schemas refer to, by ``$id``.
_REFERENCED = ("comparison", "model")


def mistakes(name: str, document: object) -> list[str]:
    """What is wrong with ``document`` under ``NAME.schema.json``: ``key: what``; empty when nothing is."""
    from jsonschema import Draft202012Validator  # takes 100 ms to import; planning does without
    from referencing import Registry, Resource

    resources = [(schema(other)["$id"], Resource.from_contents(schema(other))) for other in _REFERENCED]
    registry: Registry[Any] = Registry().with_resources(resources)
    validator = Draft202012Validator(schema(name), registry=registry)
    errors = sorted(validator.iter_errors(document), key=lambda error: [str(part) for part in error.absolute_path])
    return list(dict.fromkeys(line for error in errors for line in _lines(error)))


def require_valid(name: str, document: object, where: str) -> None:
    """Raise InputError, beginning with ``where`` and naming every wrong key, unless ``document`` is valid."""
    found = mistakes(name, document)
    if found:
        shown = "; ".join(found[:3])
        more = f"; and {len(found) - 3} more" if len(found) > 3 else ""
        raise InputError(f"{where}: {shown}{more}")


def read_record(path: Path | str, name: str) -> dict[str, Any]:
    """The record in ``path``, valid under ``NAME.schema.json``.

    Raises:
        InputError: the file cannot be read or is not JSON (with line and column), or a key of it is missing,
            unknown or has a value that is not allowed.
    """
    path = Path(path)
    try:
        content = read_at_most(path, LARGEST_FILE)
        if content is None:
            raise InputError(f"{path}: is too large for a record; at most {LARGEST_FILE:,} bytes")
        document: dict[str, Any] = json.loads(content.decode("utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 text (byte {error.start})") from error
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: line {error.lineno}, column {error.colno}: not valid JSON: {error.msg}") from error
    except RecursionError as error:
        raise InputError(f"{path}: not valid JSON: nested too deeply") from error
    except ValueError as error:  # of int(), which takes 4,300 digits
        raise InputError(f"{path}: not valid JSON: a number in it is too long") from error
    require_valid(name, document, str(path))
    return document


def _lines(error: ValidationError) -> Iterator[str]:
    """``ranks[1].init.peak_bytes: "many" is not allowed; ...``, one line a key."""
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error.absolute_path).lstrip(".")
    rules: Mapping[str, Any] = error.schema if isinstance(error.schema, dict) else {}
    instance: Mapping[str, Any] = error.instance if isinstance(error.instance, dict) else {}
    if error.validator == "required":
        for key in rules["required"]:
            if key not in instance:
                yield f"{_join(path, key)}: is missing"
    elif error.validator == "additionalProperties":
        for key in instance:
            if key not in rules["properties"]:
                yield f"{_join(path, key)}: unknown key"
    else:
        yield f"{path or 'the record'}: {_short(error.message)}"


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _short(message: str) -> str:
    # A wrong type is reported with the whole value, which may be a whole record.
    return message if len(message) <= 160 else f"{message[:60]} ... {message[-80:]}"
