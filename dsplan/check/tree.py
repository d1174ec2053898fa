"""A configuration as a tree that remembers where every key and value stands, and what its reader met."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Scalar:
    """A string, number, truth value or null; ``offset`` and ``end`` are character offsets in the file."""

    value: str | int | float | bool | None
    offset: int
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Items:
    """A list."""

    items: tuple[Node, ...]
    offset: int
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One key of a section with its value; ``offset`` is where the key stands, quotes included."""

    key: str
    offset: int
    end: int
    node: Node


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """An object; a key that is given twice is there twice."""

    members: tuple[Member, ...]
    offset: int
    end: int

    def member(self, key: str) -> Member | None:
        """The last member called ``key``, which is the one that JSON keeps."""
        for member in reversed(self.members):
            if member.key == key:
                return member
        return None


Node = Scalar | Items | Section

#: Sections and lists within one another; a configuration has five.
DEEPEST = 50

#: Kinds of problems. DeepSpeed's own reader refuses the text, or reads something else than what stands there.
SYNTAX = "syntax"
#: DeepSpeed's reader (Hjson) takes it; a JSON parser does not.
RELAXED = "relaxed"
#: A key that is given twice in one section.
TWICE = "twice"


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """What a reader has to say about the form; ``kind`` is one of the constants above, ``offset`` is in the file."""

    kind: str
    offset: int
    message: str
    instead: str = ""


def plain(node: Node) -> Any:
    """The tree as Python's dictionaries, lists and values."""
    if isinstance(node, Section):
        return {member.key: plain(member.node) for member in node.members}
    if isinstance(node, Items):
        return [plain(item) for item in node.items]
    return node.value


def find(root: Section, path: str) -> Member | None:
    """The member at a dotted path; None when it is not there."""
    section: Node = root
    found: Member | None = None
    for key in path.split("."):
        found = section.member(key) if isinstance(section, Section) else None
        if found is None:
            return None
        section = found.node
    return found


def scalars(node: Node) -> Iterator[Scalar]:
    """Every value of the tree, in the order of the file."""
    if isinstance(node, Scalar):
        yield node
    elif isinstance(node, Items):
        for item in node.items:
            yield from scalars(item)
    else:
        for member in node.members:
            yield from scalars(member.node)


_LINE_END = re.compile("\n")


class Lines:
    """Lines and columns of a text, both counted from 1 and columns in characters."""

    def __init__(self, text: str) -> None:
        self._length = len(text)
        self._starts = [0, *(end.end() for end in _LINE_END.finditer(text))]

    def position(self, offset: int) -> tuple[int, int]:
        """The line and column of a character; what lies behind the text is at its end."""
        offset = max(0, min(offset, self._length))
        line = bisect_right(self._starts, offset)
        return line, offset - self._starts[line - 1] + 1
