"""accelerate's own configuration file."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from dsplan.check.configuration import Configuration
from dsplan.check.finding import ERROR, WARNING, Finding, Rule

UNKNOWN_KEY = Rule(
    id="DS911",
    name="accelerate-unknown-key",
    severity=ERROR,
    summary="accelerate reads no such key in deepspeed_config.",
)
CONFLICT = Rule(
    id="DS912",
    name="accelerate-conflict",
    severity=ERROR,
    summary="A setting beside deepspeed_config_file, which accelerate refuses.",
)
NO_FILE = Rule(
    id="DS913",
    name="accelerate-no-file",
    severity=WARNING,
    summary="deepspeed_config_file names a file that is not there.",
)
RULES = (UNKNOWN_KEY, CONFLICT, NO_FILE)

#: :mod:`dsplan.check.accelerate_yaml` judges the file while it reads it.
CHECKS: tuple[Callable[[Configuration], Iterator[Finding]], ...] = ()
