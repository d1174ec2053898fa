"""Texts that no configuration should be: valid ones, changed at random; the same ones for the same seed."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from .mutations import CONFIGS, mutated

_TEXTS = tuple(
    path.read_text(encoding="utf-8")
    for folder in ("valid", "mistakes")
    for path in sorted((CONFIGS / folder).iterdir())
)
_JSON = tuple(text for text in _TEXTS if text.lstrip().startswith("{"))
_YAML = tuple(text for text in _TEXTS if "deepspeed_config:" in text)
_PIECES = (
    *('"', "'", "{", "}", "[", "]", ":", ",", "=", "-", "#", "/*", "*/", "//", "'''", "\\", "\\u", "```", "..."),
    *("\n", "\r", "\t", " ", "\x00", "\x1f", "\x85", "\u2028", "\ufeff", "\u200b", "é", "日本", "🙂", "\ud7ff"),
    *("&", "*", "- ", "|"),
)
_VALUES = (
    *("true", "True", "null", "None", "NaN", "-NaN", "Infinity", "-Infinity", "1e400", "-1e400", "1e-400", "9" * 400),
    *("0x10", "1_000", "+1", ".5", "5.", "1e", "--1", '"5e8"', '"auto"', '"true"', "[]", "{}", "[[]]", '[{"a": 1}]'),
    *("9223372036854775808", "-1", "0", "0.1", '""', '"\\ud800"', '"\\u0000"', "tru", "cpu", "{{", "[1, 2"),
)
_TOKENS = ("{", "}", "[", "]", ":", ",")


@dataclass(frozen=True)
class Case:
    """``content`` is the file, ``suffix`` the end of its name, ``what`` was done to it."""

    content: bytes
    suffix: str
    what: str


def cases(count: int, seed: int) -> Iterator[Case]:
    """``count`` damaged files of every kind that a check reads."""
    changed = mutated(count, seed)
    for number in range(count):
        chance = random.Random(f"{seed} {number}")
        what, suffix = chance.choice(_KINDS), chance.choice(_SUFFIXES)
        if what is _changed:
            text = json.dumps(next(changed)[1], indent=chance.choice((None, 1)))
        else:
            text = chance.choice(_YAML if suffix == ".yaml" and chance.random() < 0.7 else _JSON)
            for _ in range(chance.choice((1, 1, 2, 5))):
                text = what(text, chance)
        if suffix == ".md":
            text = _in_markdown(text, chance)
        content = text.encode("utf-8", "surrogatepass")
        if what is _bytes:
            content = _damaged(content, chance)
        yield Case(content=content, suffix=suffix, what=f"{number}: {what.__name__}")


def _bytes(text: str, chance: random.Random) -> str:
    return text  # the bytes are damaged once they are bytes


def _damaged(content: bytes, chance: random.Random) -> bytes:
    data = bytearray(content)
    for _ in range(chance.randint(1, 8)):
        at = chance.randrange(len(data) + 1)
        data[at : at + chance.choice((0, 1, 1, 3))] = chance.randbytes(chance.choice((0, 1, 1, 2)))
    return bytes(data)


def _pieces(text: str, chance: random.Random) -> str:
    at, length = chance.randrange(len(text) + 1), chance.choice((0, 1, 1, 5, 40))
    put = chance.choice((*_PIECES, "", "", text[at : at + 30] * 2))
    return text[:at] + put + text[at + length :]


def _swapped(text: str, chance: random.Random) -> str:
    """Two pieces change places, or one of the punctuation becomes another."""
    if chance.random() < 0.5:
        first, second = sorted(chance.randrange(len(text) + 1) for _ in range(2))
        middle = chance.randint(first, second)
        return text[:first] + text[middle:second] + text[first:middle] + text[second:]
    old, new = chance.choice(_TOKENS), chance.choice(_TOKENS)
    found = [at for at, character in enumerate(text) if character == old]
    at = chance.choice(found) if found else len(text)
    return text[:at] + new + text[at + 1 :]


def _misspelt(text: str, chance: random.Random) -> str:
    words = [at for at, character in enumerate(text) if character.isalpha()]
    if not words:
        return text + "x"
    at = chance.choice(words)
    return text[:at] + chance.choice(("", "x", "_", text[at] * 2, text[at].upper(), "é")) + text[at + 1 :]


def _values(text: str, chance: random.Random) -> str:
    starts = [at for at, character in enumerate(text) if character == ":"]
    if not starts:
        return text + chance.choice(_VALUES)
    at = chance.choice(starts) + 1
    end = next((stop for stop in range(at, len(text)) if text[stop] in ",}\n"), len(text))
    return f"{text[:at]} {chance.choice(_VALUES)}{text[end:]}"


def _deepened(text: str, chance: random.Random) -> str:
    at, depth = chance.randrange(len(text) + 1), chance.choice((2, 10, 60, 2000))
    opening, closing = chance.choice((("[", "]"), ("{", "}"), ('{"a":', "}"), ('{"zero_optimization":', "}")))
    return text[:at] + opening * depth + text[at:] + closing * (depth if chance.random() < 0.5 else 0)


def _cut(text: str, chance: random.Random) -> str:
    at = chance.randrange(len(text) + 1)
    return text[:at] if chance.random() < 0.7 else text[at:]


def _doubled(text: str, chance: random.Random) -> str:
    """Lines, and so keys, that are there twice; now and then many times."""
    lines = text.splitlines(keepends=True) or [""]
    at = chance.randrange(len(lines))
    return "".join((*lines[:at], lines[at] * chance.choice((2, 2, 3, 40)), *lines[at:]))


def _line_ends(text: str, chance: random.Random) -> str:
    mark = chance.choice(("", "\ufeff", "\ufeff\ufeff"))
    return mark + text.replace("\r", "").replace("\n", chance.choice(("\r\n", "\r", "\n\r", "\u2028", "\x0b")))


def _relaxed(text: str, chance: random.Random) -> str:
    """What Hjson allows: no quotes, no commas, comments."""
    lines = text.splitlines()
    for at in range(len(lines)):
        if chance.random() < 0.3:
            lines[at] = lines[at].rstrip(",") + chance.choice(("", " # note", " // note", " /* note */", "\n/* open"))
        if chance.random() < 0.3:
            lines[at] = lines[at].replace('"', chance.choice(("", "'")), 2)
    return "\n".join(lines)


def _changed(text: str, chance: random.Random) -> str:
    return text  # stands for a valid document with another key or value


def _in_markdown(text: str, chance: random.Random) -> str:
    fence = chance.choice(("```", "````", "~~~"))
    language, closed = (
        chance.choice(("json", "jsonc", "", "hjson", "yml", "JSON")),
        chance.choice((fence, fence, "", "``")),
    )
    heading = chance.choice(("## ZeRO-3", "# Stage 2", "ZeRO", "#"))
    return f"{heading}\n\n{fence}{language}\n{text}\n{closed}\n" * chance.choice((1, 1, 2))


_KINDS: tuple[Callable[[str, random.Random], str], ...] = (
    *(_bytes, _pieces, _swapped, _misspelt, _values, _deepened, _cut, _doubled, _line_ends, _relaxed),
    *(_changed, _changed),
)
_SUFFIXES = (".json", ".json", ".json", ".hjson", ".md", ".yaml")
