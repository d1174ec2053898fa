"""Reading JSON and Hjson into a tree with positions, past the first mistake.

What comes out without a problem of kind ``syntax`` is what ``hjson.load`` makes of the text, which is how
DeepSpeed reads a file (``runtime/config.py``, ``DeepSpeedConfig.__init__``). Where Hjson gives up, the
mistake is noted and reading goes on with the most likely meaning.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from dsplan.check.hjson_tokens import Token, read_quoteless, read_string
from dsplan.check.tree import DEEPEST, RELAXED, SYNTAX, TWICE, Items, Lines, Member, Node, Problem, Scalar, Section

_BLANK = re.compile(r"[ \t\r\n]+")
_LINE = re.compile(r"[^\r\n]*")
_KEY = re.compile(r"[^ \t\r\n:{}\[\],]+")
_MOST_ERRORS = 20

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Parsed:
    """What was read: the outermost value (None: nothing could be), and what there is to say about the text."""

    root: Node | None
    problems: tuple[Problem, ...]

    @property
    def broken(self) -> bool:
        """Whether keys may be missing from the tree that stand in the file."""
        return any(problem.kind == SYNTAX for problem in self.problems)


def parse(text: str, start: int = 0) -> Parsed:
    """The tree of ``text`` from ``start`` on; offsets count from the beginning of ``text``."""
    parser = _Parser(text, start)
    try:
        root = parser.document()
    except _GiveUpError:
        root = None
    problems = sorted((*parser.errors, *parser.relaxed.values()), key=lambda problem: problem.offset)
    return Parsed(root=root, problems=tuple(problems))


class _GiveUpError(Exception):
    """The text is no configuration."""


class _Parser:
    def __init__(self, text: str, start: int) -> None:
        self.text = text
        self.at = start
        self.last = start  # the end of the last thing that was read
        self.depth = 0
        self.recovered = False  # whether the last value was mended, so that what follows it says nothing
        self.errors: list[Problem] = []
        self.relaxed: dict[str, Problem] = {}  # the first of each sort
        self._lines: Lines | None = None

    def document(self) -> Node | None:
        if self.text.startswith("\ufeff", self.at):
            self.relax("mark", self.at, "a byte order mark (U+FEFF) before the text", "UTF-8 without it")
            self.at += 1
        first = self.peek()
        if first == "":
            self.error(self.at, "there is nothing in it; DeepSpeed needs an object {...}")
            return None
        if first == "[":
            root: Node = self.array()
        elif first == "{":
            root = self.section()
        else:
            self.relax("braces", self.at, "no braces around the whole", "{...}")
            root = Section(members=self.members(None), offset=self.at, end=len(self.text))
        if self.peek() != "":
            self.error(self.at, "this stands behind the end of the configuration; is there a brace too many before it?")
            if isinstance(root, Section):
                rest: list[Member] = []
                while self.peek() != "":
                    if self.peek() in "]},":
                        self.at += 1
                    else:
                        rest += self.members(None)
                root = Section(members=(*root.members, *rest), offset=root.offset, end=len(self.text))
        return root

    def section(self) -> Section:
        start = self.at
        self.at += 1
        members = self.nested(lambda: self.members(start))
        return Section(members=members, offset=start, end=self.at)

    def members(self, start: int | None) -> tuple[Member, ...]:
        """Keys and values up to the brace that closes ``start``, or to the end when there is none."""
        members: list[Member] = []
        seen: set[str] = set()
        while True:
            next_one = self.peek()
            if next_one == "":
                if start is not None and not self.cut_short():
                    self.error(
                        self.last, f"the file ends here, but the {{ of line {self.line(start)} is not closed", "}"
                    )
                return tuple(members)
            if next_one == "}":
                if start is not None:
                    self.move(self.at + 1)
                return tuple(members)
            before = self.at
            member = self.member()
            if member is not None:
                if member.key in seen:
                    message = f"{member.key!r} is given twice in the same section; DeepSpeed refuses that"
                    self.errors.append(Problem(kind=TWICE, offset=member.offset, message=message, instead="keep one"))
                seen.add(member.key)
                members.append(member)
            if member is not None or self.at > before:
                self.separator("}")
            if self.at == before:
                self.at += 1

    def member(self) -> Member | None:
        start, first = self.at, self.peek()
        if first in "\"'":
            key, end = str(self.string(first)), self.at
        else:
            match = _KEY.match(self.text, self.at)
            if match is None:
                self.not_a_key(first)
                return None
            key, end = match.group(), match.end()
            self.move(end)
            self.relax("keys", start, f"the key {key} has no quotes", f'"{key}"')
        if self.peek() == ":":
            self.move(self.at + 1)
        elif self.text[self.at : self.at + 1] == "=":
            self.error(self.at, f"= after the key {key!r}", ":")
            self.move(self.at + 1)
        else:
            self.error(end, f"no colon after the key {key!r}", ":")
            if self.line(end) != self.line(self.at) or self.peek() not in set('"{[-0123456789tfn'):
                return None
        node = self.value(f"the key {key!r}")
        return None if node is None else Member(key=key, offset=start, end=end, node=node)

    def not_a_key(self, found: str) -> None:
        self.error(self.at, f"{found} where a key should stand")
        if found == "{":
            self.section()
        elif found == "[":
            self.array()
        else:
            self.at += 1

    def array(self) -> Items:
        start = self.at
        self.at += 1
        items = self.nested(lambda: self.elements(start))
        return Items(items=items, offset=start, end=self.at)

    def elements(self, start: int) -> tuple[Node, ...]:
        items: list[Node] = []
        while True:
            next_one = self.peek()
            if next_one == "]":
                self.move(self.at + 1)
                return tuple(items)
            if next_one in ("", "}"):
                if not self.cut_short():
                    self.error(self.last, f"the [ of line {self.line(start)} is not closed", "]")
                return tuple(items)
            before = self.at
            item = self.value("the list")
            if item is not None:
                items.append(item)
            self.separator("]")
            if self.at == before:
                self.at += 1

    def value(self, owner: str) -> Node | None:
        first, start = self.peek(), self.at
        if first == "{":
            return self.section()
        if first == "[":
            return self.array()
        if first in ("", "}", "]", ",", ":"):
            self.error(self.last, f"no value for {owner}")
            return None
        if first in "\"'":
            return Scalar(value=self.string(first), offset=start, end=self.at)
        token = read_quoteless(self.text, start)
        if token.quoteless:
            self.relax("text", start, f"the text {token.value} has no quotes", f'"{token.value}"')
        if token.unread:
            self.take(token)
            return None
        return Scalar(value=self.take(token), offset=start, end=start + len(self.text[start : token.end].rstrip()))

    def string(self, quote: str) -> str | int | float | bool | None:
        start = self.at
        if self.text.startswith("'''", start):
            end = self.text.find("'''", start + 3)
            self.relax("quotes", start, "a text in '''", '"..." on one line')
            if end < 0:
                self.error(start, "the ''' is not closed", "'''")
                end = len(self.text)
            self.move(min(end + 3, len(self.text)))
            return self.text[start + 3 : end].strip()
        if quote == "'":
            self.relax("quotes", start, "single quotes", '"..."')
        return self.take(read_string(self.text, start))

    def take(self, token: Token) -> str | int | float | bool | None:
        self.recovered = bool(token.error)
        if token.error:
            self.error(self.at, token.error, token.instead)
        self.move(token.end)
        return token.value

    def cut_short(self) -> bool:
        """Whether it was said already that the text ends too early: the innermost brace says it for all."""
        return bool(self.errors) and self.errors[-1].offset == self.last and self.peek() == ""

    def separator(self, closing: str) -> None:
        """The comma after a value, which Hjson does without."""
        end = self.last
        if self.peek() == ",":
            comma = self.at
            self.move(comma + 1)
            if self.peek() == closing:
                self.relax("last comma", comma, f"a comma before the closing {closing}", f"only {closing}")
        elif self.peek() not in ("", "}", "]") and not self.recovered:
            self.relax("comma", end, "no comma after this value", "a comma")

    def peek(self) -> str:
        """The next character that is neither blank nor comment; the empty string at the end."""
        while True:
            match = _BLANK.match(self.text, self.at)
            if match is not None:
                self.at = match.end()
            if self.text.startswith(("#", "//"), self.at):
                self.relax("comment", self.at, "a comment", "nothing: JSON has no comments")
                line = _LINE.match(self.text, self.at)
                assert line is not None
                self.at = line.end()
            elif self.text.startswith("/*", self.at):
                self.relax("comment", self.at, "a comment", "nothing: JSON has no comments")
                end = self.text.find("*/", self.at + 2)
                if end < 0:
                    self.error(self.at, "the comment is not closed", "*/")
                self.at = len(self.text) if end < 0 else end + 2
            else:
                return self.text[self.at : self.at + 1]

    def nested(self, read: Callable[[], tuple[_T, ...]]) -> tuple[_T, ...]:
        self.depth += 1
        if self.depth > DEEPEST:
            self.error(self.at, f"more than {DEEPEST} levels of braces")
            raise _GiveUpError
        result = read()
        self.depth -= 1
        return result

    def move(self, to: int) -> None:
        self.at = self.last = to

    def line(self, offset: int) -> int:
        if self._lines is None:
            self._lines = Lines(self.text)
        return self._lines.position(offset)[0]

    def error(self, offset: int, message: str, instead: str = "") -> None:
        self.errors.append(Problem(kind=SYNTAX, offset=offset, message=message, instead=instead))
        if sum(problem.kind == SYNTAX for problem in self.errors) > _MOST_ERRORS:
            raise _GiveUpError

    def relax(self, sort: str, offset: int, message: str, instead: str) -> None:
        self.relaxed.setdefault(sort, Problem(kind=RELAXED, offset=offset, message=message, instead=instead))
