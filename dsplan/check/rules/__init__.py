"""The rules. A check is a function that yields findings; every finding names its rule."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from dsplan.check.configuration import Configuration
from dsplan.check.finding import Finding, Rule
from dsplan.check.rules import (
    accelerate,
    auto,
    batch,
    buckets,
    clipping,
    keys,
    offload,
    old_keys,
    optimizer,
    precision,
    scheduler,
    stage,
    text,
    title,
    trades,
    values,
    verdict,
)

Check = Callable[[Configuration], Iterator[Finding]]

_MODULES = (
    text,
    keys,
    old_keys,
    values,
    batch,
    precision,
    clipping,
    stage,
    optimizer,
    scheduler,
    auto,
    offload,
    buckets,
    trades,
    verdict,
    title,
    accelerate,
)

#: Every rule, in the order of the ids.
RULES: tuple[Rule, ...] = tuple(
    sorted((rule for module in _MODULES for rule in module.RULES), key=lambda rule: rule.id)
)
#: Every check of a configuration that could be read.
CHECKS: tuple[Check, ...] = tuple(check for module in _MODULES for check in module.CHECKS)
