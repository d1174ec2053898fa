"""The form of a file, whatever it says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from dsplan.check.configuration import Configuration
from dsplan.check.finding import ERROR, WARNING, Finding, Rule
from dsplan.check.tree import RELAXED, TWICE, Lines, Problem
from dsplan.dsconfig.consumers import CONSUMER_NAMES, DEEPSPEED

SYNTAX = Rule(
    id="DS001",
    name="syntax",
    severity=ERROR,
    summary="The file cannot be read, or DeepSpeed's reader makes something else of it than what stands there.",
)
NOT_JSON = Rule(
    id="DS002",
    name="not-json",
    severity=WARNING,
    summary="Comments, missing quotes or commas: DeepSpeed reads Hjson, which allows them; Hugging Face's Trainer, "
    "accelerate and Lightning read JSON, where they are errors.",
)
TWICE_GIVEN = Rule(id="DS003", name="given-twice", severity=ERROR, summary="A key is given twice in one section.")
RULES = (SYNTAX, NOT_JSON, TWICE_GIVEN)

#: The text is judged before there is a configuration to check.
CHECKS: tuple[Callable[[Configuration], Iterator[Finding]], ...] = ()


def text_finding(path: Path, lines: Lines, problem: Problem, consumer: str) -> Finding:
    """What is said about a problem that a reader met.

    Source: DeepSpeed ``runtime/config.py`` (``DeepSpeedConfig.__init__``: ``hjson.load`` with
    ``dict_raise_error_on_duplicate_keys``); accelerate ``utils/deepspeed.py`` (``HfDeepSpeedConfig``) and
    Lightning ``strategies/deepspeed.py`` (``_load_config``): ``json.load``.
    """
    line, column = lines.position(problem.offset)
    rule, severity, message = SYNTAX, ERROR, problem.message
    if problem.kind == TWICE:
        rule = TWICE_GIVEN
    elif problem.kind == RELAXED:
        rule, severity = NOT_JSON, WARNING if consumer == DEEPSPEED else ERROR
        reader = "DeepSpeed alone reads this; other readers of the file do not"
        if consumer != DEEPSPEED:
            reader = f"{CONSUMER_NAMES[consumer]} reads JSON, which does not have this"
        message = f"{problem.message}: {reader}"
    return Finding(
        path=path, line=line, column=column, rule=rule, severity=severity, key="", message=message,
        instead=problem.instead,
    )  # fmt: skip
