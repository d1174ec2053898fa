"""The driver's order of addresses, against where it put every segment of tests/data/allocator_traces.json."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsplan.allocator.placement import CONTEXT_BYTES, PAGE_BYTES, REGION_BYTES, TOP, DriverPlacement, RisingPlacement
from dsplan.units import MIB
from tests.allocator.replay import Recorded, Seen, replay
from tests.gpu.header import read_rows

FILE = Path(__file__).parents[1] / "data" / "allocator_traces.json"
RECORDS = [
    record
    for record in read_rows(FILE, key="sequences")
    if not record["configuration"].startswith("expandable_segments")
]
#: Each configuration's sequences ran in one process; a cap came last, on address space that was used before.
FRESH = [record for record in RECORDS if record["cap_bytes"] is None]


#: Sequences of which a later segment lies elsewhere, and how many lie where they should until then.
KNOWN = {("", "streams"): 11}


class Compared(Recorded):
    """Gives what the driver chose, and notes what we would have chosen until the first segment is freed."""

    def __init__(self, seen: Seen, addresses: list[int]) -> None:
        super().__init__(seen, addresses)
        self.ours: DriverPlacement | None = None
        self.freed = False
        self.pairs: list[tuple[int, int]] = []  # (the driver's, ours)

    def take(self, size_bytes: int) -> int:
        theirs = super().take(size_bytes)
        if self.ours is None:
            self.ours = DriverPlacement(theirs - CONTEXT_BYTES + REGION_BYTES)
        if not self.freed:
            self.pairs.append((theirs, self.ours.take(size_bytes)))
        return theirs

    def give_back(self, address: int) -> None:  # noqa: ARG002
        self.freed = True


@pytest.mark.parametrize("record", FRESH, ids=lambda record: f"{record['configuration'] or 'default'} {record['name']}")
def test_every_segment_lies_where_the_driver_put_it(record: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Compared] = []

    def make(seen: Seen, addresses: list[int]) -> Compared:
        made.append(Compared(seen, addresses))
        return made[0]

    monkeypatch.setattr("tests.allocator.replay.Recorded", make)
    replay(record)
    pairs = made[0].pairs[: KNOWN.get((record["configuration"], record["name"]))]
    assert len(pairs) > 2
    assert [ours for _, ours in pairs] == [theirs for theirs, _ in pairs]


def test_the_first_regions() -> None:
    placement = DriverPlacement()
    start = TOP - REGION_BYTES + CONTEXT_BYTES
    assert placement.take(20 * MIB) == start
    assert placement.take(20 * MIB) == start - CONTEXT_BYTES - REGION_BYTES  # the first has 6 MiB left
    assert placement.take(2 * MIB) == start - CONTEXT_BYTES - REGION_BYTES + 20 * MIB  # the lowest with room
    assert placement.take(512 * MIB) % (512 * MIB) == 0


@given(st.lists(st.tuples(st.integers(1, 600), st.booleans()), max_size=60))
def test_live_segments_never_overlap(program: list[tuple[int, bool]]) -> None:
    placement, live = DriverPlacement(), []
    for mebibytes, frees in program:
        if frees and live:
            placement.give_back(live.pop(mebibytes % len(live))[0])
            continue
        address = placement.take(mebibytes * MIB)
        assert address % PAGE_BYTES == 0
        live.append((address, mebibytes * MIB))
        ordered = sorted(live)
        assert all(one + size <= other for (one, size), (other, _) in itertools.pairwise(ordered))
    for address, _ in live:
        placement.give_back(address)


def test_the_other_order_rises_and_uses_nothing_again() -> None:
    placement = RisingPlacement()
    first, second = placement.take(3 * MIB), placement.take(MIB)
    placement.give_back(first)
    third = placement.take(2 * MIB)
    assert [second - first, third - second] == [4 * MIB, 2 * MIB]
    assert all(address % PAGE_BYTES == 0 for address in (first, second, third))


@given(st.lists(st.tuples(st.integers(1, 1200), st.booleans()), max_size=40))
def test_a_region_is_taken_in_the_highest_gap_that_is_large_enough(program: list[tuple[int, bool]]) -> None:
    placement, live = DriverPlacement(), []
    for mebibytes, frees in program:
        if frees and live:
            placement.give_back(live.pop(mebibytes % len(live)))
            continue
        before = {base: region.size_bytes for base, region in placement._regions.items()}
        live.append(placement.take(mebibytes * MIB))
        for base in placement._regions.keys() - before.keys():
            size = placement._regions[base].size_bytes
            alignment = 512 * MIB if (mebibytes + mebibytes % 2) % 512 == 0 else REGION_BYTES  # whole pages
            higher = range((TOP - size) // alignment * alignment, base, -alignment)
            assert all(
                any(other < place + size and place < other + taken for other, taken in before.items())
                for place in higher
            )
