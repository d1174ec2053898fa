"""Strings and values without quotes, as Hjson reads them.

Source: hjson 3.1 ``decoder.py`` (``scanstring``, ``scantfnns``), with which DeepSpeed reads a file
(``runtime/config.py``, ``DeepSpeedConfig.__init__``).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

#: Where a value without quotes may end; it does when what stands before is a number, true, false or null.
_STOP = re.compile(r"[\r\n,}\]#]|//|/\*|\Z")
_NUMBER = re.compile(r"[\t ]*(-?(?:0|[1-9][0-9]*))(\.[0-9]+)?([eE][-+]?[0-9]+)?[\t ]*")
_CHUNK = re.compile(r"[^\"'\\\x00-\x1f]*")
_LITERALS = {"null": None, "true": True, "false": False}
#: Python's spelling, which Hjson takes for text.
PYTHON_LITERALS = {"True": True, "False": False, "None": None}
_PYTHON = re.compile(r"(True|False|None)\b")
#: A complete value and then a quote on the same line: a comma is missing, and Hjson takes both for one text.
_NO_COMMA = re.compile(r"(?:true|false|null|-?[0-9][0-9.eE+-]*)[\t ]+(?=\")")
_ESCAPES = {'"': '"', "'": "'", "\\": "\\", "/": "/", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_HEX = re.compile(r"[0-9a-fA-F]{4}")
#: Hjson makes a whole number of a float that is one, up to this size.
_LARGEST_WHOLE = 1e10


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """A value and where it ends; ``error`` says what is wrong with it, ``quoteless`` that it is text without quotes.

    ``unread``: nothing can be made of it, so that ``value`` says nothing.
    """

    value: str | int | float | bool | None
    end: int
    error: str = ""
    instead: str = ""
    quoteless: bool = False
    unread: bool = False


def read_string(text: str, at: int) -> Token:
    """The string whose quote stands at ``at``; one that is not closed ends with its line."""
    quote, parts, error = text[at], [], ""
    at += 1
    while True:
        match = _CHUNK.match(text, at)
        assert match is not None  # the pattern matches nothing, too
        parts.append(match.group())
        at = match.end()
        character = text[at : at + 1]
        if character == quote:
            return Token(value="".join(parts), end=at + 1, error=error)
        if character in ("", "\n", "\r"):
            return Token(value="".join(parts), end=at, error=f"the string is not closed on its line; add {quote}")
        if character == "\\":
            piece, at, wrong = _escape(text, at)
            parts.append(piece)
            error = error or wrong
        else:
            if character not in "\"'":
                error = error or f"a string cannot hold the control character {character!r}"
            parts.append(character)
            at += 1


def _escape(text: str, at: int) -> tuple[str, int, str]:
    """The character that an escape stands for, where it ends, and what is wrong with it."""
    letter = text[at + 1 : at + 2]
    if letter == "u":
        digits = _HEX.match(text, at + 2)
        if digits is None:
            return "", at + 2, r"\u needs four hexadecimal digits"
        return _surrogates(text, int(digits.group(), 16), digits.end())
    if letter in _ESCAPES and letter:
        return _ESCAPES[letter], at + 2, ""
    return "\\", at + 1, f"\\{letter} is no escape; a backslash is written \\\\"


def _surrogates(text: str, code: int, end: int) -> tuple[str, int, str]:
    low = _HEX.match(text, end + 2) if text.startswith("\\u", end) else None
    if 0xD800 <= code < 0xDC00 and low is not None and 0xDC00 <= (second := int(low.group(), 16)) < 0xE000:
        return chr(0x10000 + ((code - 0xD800) << 10) + (second - 0xDC00)), low.end(), ""
    return chr(code), end, ""


def read_quoteless(text: str, at: int) -> Token:
    """The number, literal or text without quotes at ``at``, which is no blank and no punctuation."""
    python = _PYTHON.match(text, at)
    if python is not None:
        word = python.group()
        value = PYTHON_LITERALS[word]
        spelled = {"True": "true", "False": "false", "None": "null"}[word]
        return Token(value=value, end=python.end(), error=f"{word} is Python", instead=spelled)
    no_comma = _NO_COMMA.match(text, at)
    if no_comma is not None:
        end = at + len(no_comma.group().rstrip())
        first = _value(text, at, end)
        message = "no comma after this value: DeepSpeed's reader takes the rest of the line for one text"
        return Token(value=None if first is None else first.value, end=end, error=message, instead="a comma")
    for stop in _STOP.finditer(text, at):
        end = stop.start()
        found = _value(text, at, end)
        if found is not None:
            return found
        if stop.group() in ("", "\n", "\r"):
            return _text(text, at, end)
    raise AssertionError("the pattern matches the end of every text")


def _value(text: str, at: int, end: int) -> Token | None:
    word = text[at:end].strip()
    if word in _LITERALS:
        return Token(value=_LITERALS[word], end=end)
    number = _NUMBER.fullmatch(text, at, end)
    if number is None:
        return None
    value = float(number.group())
    if abs(value) == float("inf"):
        return Token(value=None, end=end, error="the number is too large", unread=True)
    whole, fraction, exponent = number.groups()
    if not fraction and not exponent:
        return Token(value=int(whole), end=end)
    small = value.is_integer() and abs(value) < _LARGEST_WHOLE
    return Token(value=int(value) if small else value, end=end)


def _text(text: str, at: int, end: int) -> Token:
    """Text without quotes goes on to the end of its line, with every comma and brace in it."""
    whole = text[at:end]
    cut = re.search(r"[,}\]\"]", whole)
    if cut is None or not whole[: cut.start()].strip():
        return Token(value=whole.strip(), end=end, quoteless=True)
    first = whole[: cut.start()].strip()
    message = f"text without quotes: DeepSpeed's reader takes the whole line, {_short(whole.strip())}, for the value"
    return Token(value=first, end=at + cut.start(), error=message, instead=f'"{first}"')


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")
