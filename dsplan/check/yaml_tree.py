"""Reading YAML as accelerate does, with PyYAML, into a tree with positions."""

from __future__ import annotations

import re
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from dsplan.check.tree import DEEPEST, SYNTAX, Items, Member, Node, Problem, Scalar, Section

if TYPE_CHECKING:
    import yaml

#: Characters; longer files are no settings of accelerate's, and PyYAML reads some 100,000 a second.
_LONGEST = 65_536
#: The tags of lists and mappings as YAML has them.
_YAML = "tag:yaml.org,2002:"
_PLAIN = (f"{_YAML}map", f"{_YAML}seq")
_TOO_DEEP = f"more than {DEEPEST} levels"


class _RefusedError(Exception):
    """What is YAML and no configuration."""

    def __init__(self, node: yaml.Node, message: str) -> None:
        super().__init__(message)
        self.offset: int = node.start_mark.index


def parse(text: str, section: str) -> tuple[Section | None, tuple[Problem, ...]]:
    """The tree of ``text``, or why there is none.

    Args:
        section: the key at the top without which a file is of no interest, and is not read.

    Source: accelerate ``commands/config/config_args.py`` (``BaseConfig.from_yaml_file``: ``yaml.safe_load``).
    """
    if re.search(rf"^(['\"]?){section}\1[ \t]*:", text, re.MULTILINE) is None:
        return None, ()
    if len(text) > _LONGEST:
        return None, (_unread(f"more than {_LONGEST:,} characters", 0),)
    found = _root(text)
    if isinstance(found, Problem):
        return None, (found,)
    return (found, ()) if isinstance(found, Section) else (None, ())


def _root(text: str) -> Node | Problem | None:
    # Before PyYAML, which looks for the end of each of a thousand braces.
    if max(accumulate(1 if brace in "[{" else -1 for brace in re.findall(r"[\[{}\]]", text)), default=0) > DEEPEST:
        return _unread(_TOO_DEEP, 0)
    import yaml

    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        return None if node is None else _Reader(loader).read(node)
    except _RefusedError as error:
        return _unread(str(error), error.offset)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        return _unread(str(error.problem or error.context), 0 if mark is None else mark.index)
    except yaml.reader.ReaderError as error:
        return _unread(f"{error.character!r}: {error.reason}", error.position)
    except RecursionError:
        return _unread(_TOO_DEEP, 0)


def _unread(why: str, offset: int) -> Problem:
    return Problem(kind=SYNTAX, offset=offset, message=f"this YAML cannot be read: {' '.join(why.split())}")


class _Reader:
    """Makes trees of PyYAML's nodes."""

    def __init__(self, loader: yaml.SafeLoader) -> None:
        self._loader = loader
        self._seen: set[int] = set()

    def read(self, node: yaml.Node, depth: int = 0) -> Node:
        """The tree of ``node``.

        Raises:
            _RefusedError: an alias, a value that Python has not, a list or mapping of another type, or too many levels.
            yaml.MarkedYAMLError: a tag that is not YAML's own.
        """
        import yaml

        if id(node) in self._seen:
            raise _RefusedError(node, "a value that another place names (&name, *name): write it in both")
        if depth > DEEPEST:
            raise _RefusedError(node, _TOO_DEEP)
        self._seen.add(id(node))
        if not isinstance(node, yaml.ScalarNode) and node.tag not in _PLAIN:
            raise _RefusedError(node, f"a value of the type {node.tag.removeprefix(_YAML)}: write a plain one")
        start, end = node.start_mark.index, node.end_mark.index
        if isinstance(node, yaml.MappingNode):
            named = [(key, value) for key, value in node.value if isinstance(key, yaml.ScalarNode)]
            return Section(members=tuple(self._member(*each, depth) for each in named), offset=start, end=end)
        if isinstance(node, yaml.SequenceNode):
            return Items(items=tuple(self.read(item, depth + 1) for item in node.value), offset=start, end=end)
        return Scalar(value=self._value(node), offset=start, end=end)

    def _member(self, key: yaml.ScalarNode, value: yaml.Node, depth: int) -> Member:
        start, end = key.start_mark.index, key.end_mark.index
        node = self.read(value, depth + 1)
        if isinstance(node, Scalar) and node.offset == node.end:
            # No value: PyYAML says where the next key stands.
            node = Scalar(value=node.value, offset=end, end=end)
        return Member(key=str(key.value), offset=start, end=end, node=node)

    def _value(self, node: yaml.ScalarNode) -> str | int | float | bool | None:
        try:
            value: Any = self._loader.construct_object(node)
        except ValueError as error:  # a date that is none, a number of thousands of digits
            raise _RefusedError(node, str(error)) from error
        return value if value is None or isinstance(value, str | int | float | bool) else str(node.value)
