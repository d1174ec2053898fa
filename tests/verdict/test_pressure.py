"""Replays: what a trace reserves, what it can live with, and where it dies."""

from __future__ import annotations

import pytest

from dsplan.allocator import parse_settings
from dsplan.units import MIB
from dsplan.verdict.operations import EMPTY_CACHE, RELEASE, Trace
from dsplan.verdict.pressure import least, replay
from tests.verdict.plans import traced

EXPANDABLE = parse_settings("expandable_segments:True")


def script(*operations: tuple[int, int]) -> Trace:
    return Trace(list(operations), [None] * len(operations), [])


def test_what_is_in_pieces_does_not_serve_a_large_request() -> None:
    """A tensor of 20 MiB keeps a segment of 60: the 40 beside it are free, and 60 are asked for."""
    pieces = script((60 * MIB, 0), (RELEASE, 0), (20 * MIB, 0), (60 * MIB, 0))
    assert replay(pieces).allocated_bytes == 80 * MIB
    died = replay(pieces, 119 * MIB)
    assert (died.died_at, died.lived) == (3, False)
    assert (died.allocated_bytes, died.reserved_bytes) == (20 * MIB, 60 * MIB)
    assert (died.segment_bytes, died.num_retries) == (60 * MIB, 1)
    assert replay(pieces, 120 * MIB).lived


def test_the_cache_is_given_back_under_pressure() -> None:
    cached = script((40 * MIB, 0), (RELEASE, 0), (60 * MIB, 0))
    assert replay(cached).reserved_bytes == 100 * MIB
    assert replay(cached, 60 * MIB).lived
    assert replay(cached, 60 * MIB).num_retries == 1


def test_emptying_the_cache_leaves_less_reserved() -> None:
    emptied = script((40 * MIB, 0), (RELEASE, 0), (EMPTY_CACHE, 0), (60 * MIB, 0))
    assert replay(emptied).reserved_bytes == 60 * MIB


def test_blocks_of_one_stream_do_not_serve_another() -> None:
    one, two = script((40 * MIB, 1), (RELEASE, 0), (40 * MIB, 1)), script((40 * MIB, 1), (RELEASE, 0), (40 * MIB, 0))
    assert replay(one).reserved_bytes == 40 * MIB
    assert replay(two).reserved_bytes == 80 * MIB


@pytest.mark.parametrize("name", ["zero0-ckpt", "zero2", "zero3-ckpt"])
def test_the_least_lives_and_less_dies(name: str) -> None:
    trace = traced(name)
    idle = replay(trace)
    found = least(trace, dies_bytes=idle.allocated_bytes - 1, lives_bytes=idle.reserved_bytes, within=MIB)
    assert idle.allocated_bytes <= found <= idle.reserved_bytes
    assert replay(trace, found).lived
    assert not replay(trace, found - 2 * MIB).lived


def test_expandable_segments_leave_nothing_in_pieces() -> None:
    trace = traced("zero2-ckpt")
    usual, growing = replay(trace), replay(trace, settings=EXPANDABLE)
    assert growing.reserved_bytes < usual.reserved_bytes
    assert growing.reserved_bytes - growing.allocated_bytes < 100 * MIB
