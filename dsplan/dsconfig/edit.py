"""Changing single keys of a configuration, in its order, and leaving everything else as it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_STAGE3 = "stage3_"


def copied(section: Mapping[str, Any]) -> dict[str, Any]:
    """``section`` with sections of its own."""
    return {key: copied(value) if isinstance(value, Mapping) else value for key, value in section.items()}


def value_at(document: Mapping[str, Any], key: str) -> Any:
    """The value at a dotted key; None when it is not there."""
    value: Any = document
    for part in key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return None
        value = value[part]
    return value


def set_key(document: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key; sections that are missing are made."""
    *sections, name = key.split(".")
    for part in sections:
        if not isinstance(document.get(part), dict):
            document[part] = {}
        document = document[part]
    document[name] = value


def drop_key(document: dict[str, Any], key: str) -> None:
    """Remove a dotted key, if it is there."""
    *sections, name = key.split(".")
    for part in sections:
        if not isinstance(document.get(part), dict):
            return
        document = document[part]
    document.pop(name, None)


def rename_key(document: dict[str, Any], key: str, new: str, value: Any) -> dict[str, Any]:
    """``document`` with ``key`` called ``new`` and holding ``value``, in the same place; both in one section."""
    section, _, name = key.rpartition(".")
    if section:
        inner = value_at(document, section)
        set_key(document, section, rename_key(inner, name, new.rpartition(".")[2], value))
        return document
    return {new if key == name else key: value if key == name else old for key, old in document.items()}


def zero_key(document: Mapping[str, Any], field: str) -> str:
    """The dotted key of a ZeRO field: the short name of stage 3 where the document uses it."""
    short = f"zero_optimization.{field.removeprefix(_STAGE3)}"
    section = document.get("zero_optimization")
    given = isinstance(section, Mapping) and field.removeprefix(_STAGE3) in section
    return short if given else f"zero_optimization.{field}"
