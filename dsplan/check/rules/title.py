"""What a configuration is called beside what it is."""

from __future__ import annotations

import re
from collections.abc import Iterator

from dsplan.check.configuration import Configuration
from dsplan.check.finding import WARNING, Finding, Rule

TITLE = Rule(
    id="DS901",
    name="stage-and-title",
    severity=WARNING,
    summary="The heading above the configuration, or its file's name, says another ZeRO stage.",
)
RULES = (TITLE,)

_STAGE = re.compile(r"(?<![a-z0-9])(?:zero[\s_-]*(?:stage)?|ds[\s_-]*z|stage|z)[\s_-]*([0-3])(?![0-9])", re.IGNORECASE)


def stage_and_title(config: Configuration) -> Iterator[Finding]:
    """A stage 2 under a heading of ZeRO-3 trains, with three times the memory that the reader expects."""
    stage, called = config.stage, {int(digit) for digit in _STAGE.findall(config.title)}
    if stage is None or not config.has("zero_optimization") or len(called) != 1 or stage in called:
        return
    message = f"the stage is {stage}, but this is called {config.title!r}"
    yield config.finding(TITLE, "zero_optimization.stage", message, f'"stage": {called.pop()}', on_value=True)


CHECKS = (stage_and_title,)
