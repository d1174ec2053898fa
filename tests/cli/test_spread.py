"""Plans on several processes: the same rows, in the same order, and none left behind."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest

from dsplan import api
from dsplan.cli.spread import spread
from dsplan.errors import InputError
from dsplan.estimate import estimate

#: From Python 3.12 on; a worker of pytest-xdist has threads, and the command line has none yet when it forks.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")


def _square(number: int) -> tuple[int, int]:
    return number * number, os.getpid()


def test_results_come_in_order_from_other_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0, 1})
    found = list(spread(_square, range(9)))
    assert [number for number, _ in found] == [number * number for number in range(9)]
    assert os.getpid() not in {pid for _, pid in found}
    for pid in {pid for _, pid in found}:
        _gone(pid)


def test_with_one_core_nothing_is_forked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0})
    assert {pid for _, pid in spread(_square, range(3))} == {os.getpid()}


def test_an_error_is_the_callers_and_ends_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0, 1})

    def refuse(number: int) -> int:
        if number == 1:
            raise InputError("--plan: not this one")
        return os.getpid()

    rows: Iterator[int] = spread(refuse, range(4))
    pid = next(rows)
    with pytest.raises(InputError, match="not this one"):
        list(rows)
    _gone(pid)


def test_a_ladder_says_the_same_on_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0, 1})
    model, cluster = api.model("gpt-nano"), api.cluster("t4", gpus=2)
    plans = api.plans(model, cluster, api.workload(sequence_length=64))[:2]
    told: list[tuple[int, int]] = []
    alone = estimate(model, plans, cluster)
    spreading = estimate(model, plans, cluster, over=spread, on_progress=lambda done, total: told.append((done, total)))
    assert spreading == alone
    assert told == [(1, 2), (2, 2)]


def _gone(pid: int) -> None:
    for _ in range(100):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    raise AssertionError(f"process {pid} is still there")
