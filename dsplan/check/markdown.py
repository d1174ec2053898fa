"""Configurations in the code blocks of a Markdown file."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_FENCE = re.compile(r"^[ \t]*(`{3,}|~{3,})[ \t]*([A-Za-z0-9_+-]*)")
_HEADING = re.compile(r"^ {0,3}#{1,6}[ \t]+(.*?)[ \t]*#*$")
#: Languages of blocks that may hold a configuration.
_LANGUAGES = {"json", "jsonc", "json5", "hjson", ""}
#: Languages that JSON is shown as for its colours, when it stands in braces.
_SHOWN_AS = {"yml", "yaml", "js", "javascript"}
#: A value that says what may stand there, or that something is left out: a template, not a configuration.
_TEMPLATE = re.compile(r":\s*\[[\w.\"]+\s*\|[^\]\n]*\]|:\s*<[^>\n]+>")
_LEFT_OUT = re.compile(r"^[ \t]*(\"\.\.\.\"|\.\.\.|…)[ \t]*,?[ \t]*$|(?<=\{)[ \t]*\.\.\.[ \t]*(?=\})", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A code block: ``text`` is the file up to its end, ``start`` where it begins, ``heading`` what it stands under.

    Attributes:
        left_out: whether lines of ``...`` stand for keys that are not shown.
    """

    text: str
    start: int
    heading: str
    left_out: bool


def blocks(text: str) -> Iterator[Block]:
    """The blocks of JSON in a Markdown file, without those that are templates."""
    fence, start, language, heading, offset = "", 0, "", "", 0
    for line in text.splitlines(keepends=True):
        mark = _FENCE.match(line)
        if fence:
            if mark is not None and mark.group(1).startswith(fence) and not line.strip().strip(fence[0]):
                if _may_be_json(language, text, start) and not _TEMPLATE.search(text, start, offset):
                    yield _block(text, start, offset, heading)
                fence = ""
        elif mark is not None:
            fence, language, start = mark.group(1), mark.group(2).lower(), offset + len(line)
        elif title := _HEADING.match(line.rstrip("\r\n")):
            heading = title.group(1)
        offset += len(line)
    if fence and _may_be_json(language, text, start):
        yield _block(text, start, len(text), heading)


def _may_be_json(language: str, text: str, start: int) -> bool:
    return language in _LANGUAGES or (language in _SHOWN_AS and text[start : start + 200].lstrip().startswith("{"))


def _block(text: str, start: int, end: int, heading: str) -> Block:
    body = text[start:end]
    blanked = _LEFT_OUT.sub(lambda match: re.sub(r"[^\r\n]", " ", match.group()), body)
    return Block(text=text[:start] + blanked, start=start, heading=heading, left_out=blanked != body)
