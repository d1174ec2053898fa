"""``verify --cap``: what is said of a run that died of memory."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from dsplan.catalogue import accelerator
from dsplan.cli.verify_cap import beside_the_plan
from dsplan.errors import EXIT_OUT_OF_MEMORY, EXIT_RUN_FAILED, RunError
from dsplan.units import MIB
from dsplan.verification import NotCovered
from tests.verdict.plans import MODEL, PLANS


def _died(code: int = EXIT_OUT_OF_MEMORY, **changed: Any) -> str:
    """The message of a run that died with ``code``."""
    job = SimpleNamespace(
        model=MODEL,
        against=PLANS["zero1"],
        world_size=1,
        device=SimpleNamespace(accelerator=accelerator("h200")),
        memory_cap_bytes=200 * MIB,
        allocator="",
    )
    with pytest.raises(RunError) as caught, beside_the_plan(cast("Any", SimpleNamespace(**{**vars(job), **changed}))):
        raise RunError("rank 0 ran out of memory in phase forward", code)
    assert caught.value.exit_code == code
    return str(caught.value)


def test_a_death_is_told_beside_what_the_plan_said() -> None:
    died, said = _died().split("\n")
    assert died == "rank 0 ran out of memory in phase forward"
    assert said.startswith("The plan had said: does not fit: ")
    assert "where there are" in said
    assert "The plan had said: fits" in _died(memory_cap_bytes=64 * 1024 * MIB)  # a promise that was broken shows


def test_other_ends_are_as_they_were() -> None:
    assert _died(EXIT_RUN_FAILED) == _died(memory_cap_bytes=None) == _died(against=NotCovered(settings=()))


def test_a_run_that_lives_is_let_be() -> None:
    with beside_the_plan(cast("Any", SimpleNamespace())):
        pass
