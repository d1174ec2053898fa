"""Reading the plain YAML that ``accelerate config`` writes into a tree with positions.

Block mappings, lists of values and single-line values; anchors, tags, flow collections and texts of several
lines are not read, and say so.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from dsplan.check.tree import SYNTAX, Items, Member, Node, Problem, Scalar, Section

_ENTRY = re.compile(r"(?P<indent> *)(?P<key>\"[^\"]*\"|'[^']*'|[A-Za-z0-9_./-]+)[ \t]*:(?:[ \t]+(?P<value>.*))?$")
_ITEM = re.compile(r"(?P<indent> *)-(?:[ \t]+(?P<value>.*))?$")
_COMMENT = re.compile(r"(?:^|[ \t])#.*$")
_QUOTED = re.compile(r"\"((?:[^\"\\]|\\.)*)\"|'((?:[^']|'')*)'")
_NUMBER = re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9]*)?([eE][-+]?[0-9]+)?$")
_WORDS = {"null": None, "~": None, "": None, "true": True, "false": False, "yes": True, "no": False}
_WORDS |= {"on": True, "off": False}
_NOT_READ = ("{", "[", "&", "*", "!", "|", ">", "%", "@", "`")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Line:
    indent: int
    key: str | None  # None: an item of a list
    offset: int
    key_end: int
    value: Scalar | None  # None: what is indented below


def parse(text: str) -> tuple[Section, tuple[Problem, ...]]:
    """The tree of ``text``, and what could not be read."""
    lines, problems, offset = [], [], 0
    skipped_below: int | None = None
    for raw in text.splitlines(keepends=True):
        line = raw.rstrip("\r\n")
        start, offset = offset, offset + len(raw)
        bare = line.strip()
        if not bare or bare.startswith("#") or bare in ("---", "..."):
            continue
        indent = len(line) - len(line.lstrip(" "))
        if skipped_below is not None and indent > skipped_below:
            continue
        skipped_below = None
        read = _line(line, start)
        if read is None:
            message = "this is YAML that dsplan does not read: it reads keys, values and lists on lines of their own"
            problems.append(Problem(kind=SYNTAX, offset=start + indent, message=message))
            skipped_below = indent
        else:
            lines.append(read)
    members, _ = _members(lines, 0, 0)
    return Section(members=members, offset=0, end=len(text)), tuple(problems)


def _line(line: str, start: int) -> _Line | None:
    match = _ENTRY.match(line)
    key = None
    if match is not None:
        key = match.group("key").strip("\"'")
    else:
        match = _ITEM.match(line)
        if match is None:
            return None
    written = match.group("value") or ""
    value = None
    if written and not written.startswith("#"):
        if written.startswith(_NOT_READ):
            return None
        value = _scalar(written, start + match.start("value"))
    offset = start + len(match.group("indent"))
    end = start + (match.end("key") if key is not None else match.end("indent") + 1)
    return _Line(indent=len(match.group("indent")), key=key, offset=offset, key_end=end, value=value)


def _scalar(written: str, offset: int) -> Scalar:
    quoted = _QUOTED.match(written)
    if quoted is not None:
        inner = quoted.group(1) if quoted.group(1) is not None else quoted.group(2).replace("''", "'")
        return Scalar(value=inner, offset=offset, end=offset + quoted.end())
    bare = _COMMENT.sub("", written).rstrip()
    value: str | int | float | bool | None = bare
    if bare.lower() in _WORDS:
        value = _WORDS[bare.lower()]
    elif _NUMBER.match(bare):
        number = float(bare.replace("_", ""))
        # YAML 1.1 reads 1e9 as text and 1.0e9 as a number.
        if re.fullmatch(r"[-+]?[0-9_]+", bare):
            value = int(bare.replace("_", "")[:300])
        elif "." in bare and abs(number) != float("inf"):
            value = number
    return Scalar(value=value, offset=offset, end=offset + len(bare))


def _members(lines: list[_Line], at: int, indent: int) -> tuple[tuple[Member, ...], int]:
    """The keys at one indentation, from line ``at`` on, and the line behind them."""
    members = []
    while at < len(lines) and lines[at].indent >= indent:
        line = lines[at]
        at += 1
        if line.key is None:
            continue
        node: Node
        if line.value is not None:
            node = line.value
        elif at < len(lines) and lines[at].key is None and lines[at].indent >= line.indent:
            items = []
            while at < len(lines) and lines[at].key is None:
                found = lines[at].value
                items += [found] if found is not None else []
                at += 1
            node = Items(items=tuple(items), offset=line.key_end, end=line.key_end)
        elif at < len(lines) and lines[at].indent > line.indent:
            start = lines[at].offset
            below, at = _members(lines, at, lines[at].indent)
            node = Section(members=below, offset=start, end=start)
        else:
            node = Scalar(value=None, offset=line.key_end, end=line.key_end)
        members.append(Member(key=line.key, offset=line.offset, end=line.key_end, node=node))
    return tuple(members), at
