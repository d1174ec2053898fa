"""Writing the YAML that accelerate reads: scalars, and one level of mappings below them."""

from __future__ import annotations

import re
from collections.abc import Mapping

Scalar = str | int | bool | None

#: A text that YAML 1.1 reads as the text that it is, without quotes.
_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_./-]*")
#: Words that YAML 1.1 reads as a boolean or null, in any case.
_WORDS = frozenset({"y", "n", "yes", "no", "on", "off", "true", "false", "null"})


def yaml_text(document: Mapping[str, Scalar | Mapping[str, Scalar]]) -> str:
    """``document`` as YAML, in the order of its keys, which have to be plain words."""
    lines = []
    for key, value in document.items():
        if isinstance(value, Mapping):
            lines.append(f"{key}:")
            lines += [f"  {inner}: {_scalar(below)}" for inner, below in value.items()]
        else:
            lines.append(f"{key}: {_scalar(value)}")
    return "\n".join(lines) + "\n"


def _scalar(value: Scalar) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if _PLAIN.fullmatch(value) and value.lower() not in _WORDS:
        return value
    return '"' + "".join(_character(character) for character in value) + '"'


def _character(character: str) -> str:
    if character in '"\\':
        return f"\\{character}"
    if character.isascii() and character.isprintable():
        return character
    return f"\\U{ord(character):08X}"  # YAML knows no surrogate pairs, which JSON's \u escapes would give
