"""Every request and release of 1 MiB or more, by the formulas' trace and by a dry run, in one order."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.oracle.side import differences, first_difference, named

#: Of the grid of 400: tied weights over three micro batches without partitions, partitioned inputs under autocast,
#: offload with fp32 gradients, one head, gathered weights of one size.
NAMES = [f"20261121-{number}" for number in (370, 20, 248, 297, 61)]


@pytest.mark.engine
def test_every_request_and_release_is_the_dry_runs(tmp_path: Path) -> None:
    assert dict(differences(named(NAMES), tmp_path)) == dict.fromkeys(NAMES)


def test_a_difference_is_told() -> None:
    one = [(), (2_000_000, 0), (0,), (3_000_000, 1)]
    assert first_difference(one, one) is None
    assert first_difference(one, [(), (2_000_000, 0), (0,), (3_000_000, 2)]) is None  # another number for the stream
    assert first_difference(one, [(), (2_000_000, 0), (), (3_000_000, 1)]) == (
        "what is released before request 1: dry run (0,), formulas ()"
    )
    assert first_difference(one, [(), (2_000_512, 0)]) == "request 0: dry run (2000000, 0), formulas (2000512, 0)"
    assert first_difference(one, one[:2]) == "dry run 2 requests, formulas 1"
