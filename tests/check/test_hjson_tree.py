"""The reader of the check against hjson itself, which is DeepSpeed's reader."""

from __future__ import annotations

import json
from typing import Any

import hjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsplan.check.hjson_tree import parse
from dsplan.check.tree import RELAXED, SYNTAX, TWICE, Lines, Section, find, plain

_SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**12), 10**12),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(),
)
_VALUES = st.recursive(
    _SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=12
)
_DOCUMENTS = st.dictionaries(st.text(), _VALUES, max_size=4)
#: Pieces of text that a person leaves in a configuration.
_PIECES = (
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    '"',
    "'",
    "#",
    "//",
    "/*",
    "*/",
    "\n",
    " ",
    "\\",
    "1",
    "5e8",
    "-",
    "true",
    "a",
    "=",
)


@given(_DOCUMENTS, st.sampled_from([None, 2]))
def test_json_is_read_as_json(document: dict[str, Any], indent: int | None) -> None:
    parsed = parse(json.dumps(document, indent=indent))
    assert parsed.problems == ()
    assert parsed.root is not None
    assert json.dumps(plain(parsed.root)) == json.dumps(_whole(document))


def _whole(value: Any) -> Any:
    """Hjson makes a whole number of a float that is one."""
    if isinstance(value, dict):
        return {key: _whole(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_whole(inner) for inner in value]
    # repr writes 1e16 with an exponent; json.dumps writes 12345.0 with a fraction.
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 1e10 else value


@given(st.lists(st.sampled_from((*_PIECES, '"a": 1', '"b": "x"', "c: text", "{}", "\n")), max_size=14))
def test_what_hjson_reads_is_read_alike(pieces: list[str]) -> None:
    text = "{" + "".join(pieces) + "}"
    parsed = parse(text)
    kinds = {problem.kind for problem in parsed.problems}
    try:
        expected = hjson.loads(text, object_pairs_hook=dict)
    except (hjson.HjsonDecodeError, IndexError, OverflowError):
        assert SYNTAX in kinds
        return
    if not kinds & {SYNTAX, TWICE} and "'''" not in text:
        assert parsed.root is not None
        assert plain(parsed.root) == expected
    try:
        json.loads(text)
    except json.JSONDecodeError:
        assert kinds


@pytest.mark.parametrize(
    ("text", "message", "line", "column"),
    [
        ('{"a": 1', "is not closed", 1, 8),
        ('{"a": {"b": [1, 2}}', "the [ of line 1", 1, 18),
        ('{\n"a": True\n}', "True is Python", 2, 6),
        ('{\n"a": 1 "b": 2\n}', "no comma", 2, 6),
        ('{"a" 1}', "no colon", 1, 5),
        ('{"a" = 1}', "= after the key", 1, 6),
        ('{"a": }', "no value", 1, 6),
        ('{"a": 1,, "b": 2}', ", where a key should stand", 1, 9),
        ('{"a": "b\n}', "not closed on its line", 1, 7),
        (r'{"a": "\q"}', "no escape", 1, 7),
        (r'{"a": "\u12"}', "hexadecimal", 1, 7),
        ('{"a": 1}\n}', "behind the end", 2, 1),
        ('{"a": 1} /* b', "comment is not closed", 1, 10),
        ('{"type": AdamW, "b": 1}', "text without quotes", 1, 10),
        ('{"a": 1e999}', "too large", 1, 7),
        ("", "nothing in it", 1, 1),
        ("[" * 80, "levels of braces", 1, 52),
    ],
)
def test_a_mistake_is_found_where_it_is(text: str, message: str, line: int, column: int) -> None:
    problems = [problem for problem in parse(text).problems if problem.kind == SYNTAX]
    assert any(message in problem.message for problem in problems), problems
    found = next(problem for problem in problems if message in problem.message)
    assert Lines(text).position(found.offset) == (line, column)


@pytest.mark.parametrize(
    "text",
    [
        '{"a": 1 "b": {"c": 2}}',
        '{"a": 1,, "b": {"c": 2}}',
        '{"a": True, "b": {"c": 2}}',
        '{"a": "x, "b": 1\n "b": {"c": 2}}',
        '{"a": AdamW, "b": {"c": 2}}',
        '{"a": 1e999, "b": {"c": 2}}',
        '{"a": 1}, "b": {"c": 2}}',
        '{"a": [1, 2, "b": 1\n}, "b": {"c": 2}',
        '{"a" 1, "b": {"c": 2',
    ],
)
def test_reading_goes_on_after_a_mistake(text: str) -> None:
    root = parse(text).root
    assert isinstance(root, Section)
    member = find(root, "b.c")
    assert member is not None
    assert plain(member.node) == 2
    assert text[member.offset : member.end] == '"c"'


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ('{"a": 1,}', "a comma before the closing }"),
        ('{"a": 1 # one\n}', "a comment"),
        ('{"a": "x"\n"b": 2}', "no comma"),
        ("{'a': 1}", "single quotes"),
        ("{a: 1}", "the key a has no quotes"),
        ('{"a": x\n}', "the text x has no quotes"),
        ('"a": 1', "no braces"),
        ('\ufeff{"a": 1}', "a byte order mark"),
    ],
)
def test_what_only_hjson_takes_is_said(text: str, what: str) -> None:
    problems = parse(text).problems
    assert {problem.kind for problem in problems} == {RELAXED}
    assert any(what in problem.message for problem in problems)


def test_of_a_number_that_is_too_large_nothing_more_is_said() -> None:
    parsed = parse('{"train_batch_size": 1e999, "betas": [1e999, 2]}')
    assert isinstance(parsed.root, Section)
    assert plain(parsed.root) == {"betas": [2]}
    assert [problem.message for problem in parsed.problems] == ["the number is too large"] * 2


def test_a_key_given_twice() -> None:
    (problem,) = parse('{"a": 1,\n"a": 2}').problems
    assert (problem.kind, problem.offset) == (TWICE, 9)
