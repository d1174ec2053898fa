"""Checking a DeepSpeed configuration against ``schemas/deepspeed_config.schema.json``.

DeepSpeed accepts a misspelled key at the top level without a word; the schema does not.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from dsplan.dsconfig import DEEPSPEED_VERSION
from dsplan.dsconfig.removed import removed_keys
from dsplan.dsconfig.schema_keys import SCHEMA_NAME
from dsplan.errors import nearest
from dsplan.schemas import schema

if TYPE_CHECKING:
    from jsonschema.exceptions import ValidationError

_TOP = "the top level"

#: How keys begin that stand for a comment, which JSON does not have. DeepSpeed never asks for them at the top level.
COMMENTS = ("_", "#", "//")

_TYPE_WORDS = {
    "boolean": "true or false",
    "integer": "a whole number",
    "number": "a number",
    "string": "a string",
    "array": "a list",
    "object": "an object {...}",
    "null": "null",
}
_BOUND_WORDS = {
    "minimum": "of at least {}",
    "exclusiveMinimum": "of more than {}",
    "maximum": "of at most {}",
    "exclusiveMaximum": "of less than {}",
    "minItems": "of at least {} items",
    "maxItems": "of at most {} items",
}


def validate(document: Mapping[str, Any]) -> list[str]:
    """What is wrong with ``document``, one line a mistake, in the order of the keys; empty when nothing is.

    Each line names the dotted key, the value and what is allowed; an unknown key comes with the
    nearest valid one. A key of the top level that stands for a comment (:data:`COMMENTS`) is no mistake.
    """
    from jsonschema import Draft202012Validator  # takes 100 ms to import; planning does without

    validator = Draft202012Validator(schema(SCHEMA_NAME))
    errors = sorted(validator.iter_errors(document), key=lambda error: [str(part) for part in error.absolute_path])
    # A value that breaks two rules of its key (type and enum) is one mistake.
    return list(dict.fromkeys(line for error in errors for line in _lines(error)))


def _lines(error: ValidationError) -> Iterator[str]:
    path = ".".join(str(part) for part in error.absolute_path)
    rules = _mapping(error.schema)
    if error.validator == "additionalProperties":
        for key in _mapping(error.instance):
            if key not in rules["properties"] and not (path == "" and key.startswith(COMMENTS)):
                yield _unknown_key(path, key, rules["properties"])
    elif error.validator == "required":
        # jsonschema reports one missing key an error, and names it only in the message.
        key = error.message.split("'")[1]
        yield f"{_join(path, key)}: is missing; DeepSpeed needs it here"
    else:
        note = "; only Hugging Face's integrations resolve it" if error.instance == "auto" else ""
        yield f"{path}: {_show(error.instance)} is not allowed; it must be {_allowed(rules)}{note}"


def _unknown_key(path: str, key: str, known: Mapping[str, Any]) -> str:
    homes = [name for name, rules in _sections() if key in rules and name != (path or _TOP)]
    near = nearest(key, known, limit=1)
    renamed = removed_keys().get(_join(path, key))
    if renamed is not None and renamed.ignored is not None:
        hint = f"since {renamed.ignored} it is {renamed.instead}"
    elif homes:
        hint = f"it belongs in {' or '.join(homes)}"
    elif near:
        hint = f"did you mean {near[0]}?"
    else:
        hint = f"DeepSpeed {DEEPSPEED_VERSION} has no such key here"
    return f"{_join(path, key)}: unknown key; {hint}"


def _sections() -> Iterator[tuple[str, Mapping[str, Any]]]:
    top = schema(SCHEMA_NAME)["properties"]
    yield _TOP, top
    for name, rules in top.items():
        if "properties" in rules:
            yield name, rules["properties"]


def _allowed(rules: Mapping[str, Any]) -> str:
    if "enum" in rules:
        return "one of " + ", ".join(_show(value) for value in rules["enum"])
    if "anyOf" in rules:
        return " or ".join(_allowed(option) for option in rules["anyOf"])
    if "const" in rules:
        return _show(rules["const"])
    types = rules.get("type", [])
    words = " or ".join(_TYPE_WORDS[name] for name in ([types] if isinstance(types, str) else types))
    bounds = [text.format(rules[bound]) for bound, text in _BOUND_WORDS.items() if bound in rules]
    return " ".join([words, " and ".join(bounds)]).strip()


def _show(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
