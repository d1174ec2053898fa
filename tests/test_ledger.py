"""Ledger: sizes as each allocator rounds them, levels and peaks phase by phase, terms that add up."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsplan.kernels import Kernels
from dsplan.ledger import DEVICE, PAGEABLE, PINNED, Ledger, Term

CUDA = Kernels()
POOL = Kernels(block_bytes=1, one_pool=True, pinned_rounds_to_power_of_two=False)

TENSOR = Term("tensor", "n", "a test")
OTHER = Term("other", "m", "a test")
HOST = Term("pageable", "n", "a test", PAGEABLE)
PAGE_LOCKED = Term("pinned", "n", "a test", PINNED)
OUTSIDE = Term("page-locked outside torch's pool", "n", "a test", PINNED, pooled=False)


def ledger(kernels: Kernels = CUDA, target: tuple[str, str, int] | None = None) -> Ledger:
    made = Ledger(kernels, target=target)
    made.begin_step("first step")
    made.begin("forward")
    return made


@pytest.mark.parametrize(
    ("term", "size", "rounded"),
    [
        (TENSOR, 1, 512),
        (TENSOR, 512, 512),
        (TENSOR, 513, 1024),
        (TENSOR, 0, 0),
        (HOST, 513, 513),
        (PAGE_LOCKED, 513, 1024),
        (PAGE_LOCKED, 3, 4),
        (PAGE_LOCKED, 1025, 2048),
        (PAGE_LOCKED, 2**30, 2**30),
        (PAGE_LOCKED, 0, 0),
        (OUTSIDE, 513, 513),
    ],
)
def test_each_place_rounds_in_its_own_way(term: Term, size: int, rounded: int) -> None:
    assert ledger().rounded(term, size) == rounded
    assert ledger(POOL).rounded(term, size) == size


def test_many_small_tensors_are_rounded_one_by_one() -> None:
    made = ledger()
    made.alloc_many(TENSOR, [1] * 3)
    made.alloc(TENSOR, 3)
    assert made.level == 4 * 512
    made.free_many(TENSOR, [1] * 3)
    assert made.level == 512


def test_what_is_empty_is_not_counted() -> None:
    made = ledger(target=("first step", "forward", 512))
    made.alloc(OTHER, 0)
    made.alloc(TENSOR, 1)
    assert [(term.name, term.num_tensors) for term in made.snapshot] == [("tensor", 1)]


def test_the_pinned_pool_never_shrinks_and_reuses_its_blocks_for_equal_sizes_only() -> None:
    made = ledger()
    made.alloc(PAGE_LOCKED, 1000)
    made.free(PAGE_LOCKED, 1000)
    assert made.host_level[PINNED] == 1024
    made.alloc(PAGE_LOCKED, 600)  # 1024 too: the freed block
    assert made.host_level[PINNED] == 1024
    made.alloc(PAGE_LOCKED, 600)
    assert made.host_level[PINNED] == 2048
    made.free_many(PAGE_LOCKED, [600, 600])
    made.alloc(PAGE_LOCKED, 512)  # two blocks of 1024 are free; neither is cut
    assert made.host_level[PINNED] == made.host_peak[PINNED] == 2048 + 512


def test_page_locked_memory_outside_the_pool_and_pageable_memory_are_given_back() -> None:
    made = ledger()
    for term, place in ((OUTSIDE, PINNED), (HOST, PAGEABLE)):
        made.alloc(term, 1000)
        made.free(term, 1000)
        assert made.host_level[place] == 0
        assert made.host_peak[place] == 1000
    assert made.host_total_peak == 1000  # never both at once
    assert made.level == 0


def test_the_host_counts_in_the_level_only_where_it_is_the_device() -> None:
    for kernels, expected in ((CUDA, 512), (POOL, 30)):
        made = ledger(kernels)
        made.alloc(TENSOR, 10)
        made.alloc(HOST, 10)
        made.alloc(PAGE_LOCKED, 10)
        assert made.level == expected


def test_a_phase_knows_its_level_its_peak_and_the_moment() -> None:
    made = ledger()
    made.moment = "embedding"
    made.alloc(TENSOR, 512)
    made.moment = "loss"
    made.temporary(OTHER, 1024)
    made.moment = "later"
    made.temporary(OTHER, 1024)  # as high, not higher: the first moment stays
    made.end()
    made.begin("backward")
    made.free(TENSOR, 512)
    made.end()
    forward, backward = made.steps[0].phases["forward"], made.steps[0].phases["backward"]
    assert (forward.level_bytes, forward.peak_bytes, forward.peak_moment) == (512, 1536, "loss")
    assert (backward.level_bytes, backward.peak_bytes) == (0, 512)  # a phase starts where the last one ended
    assert made.steps[0].peak_phase == "forward"
    assert made.steps[0].peak_bytes == 1536


def test_a_phase_that_resumes_keeps_the_higher_peak_and_the_last_level() -> None:
    made = ledger()
    made.temporary(TENSOR, 4096)
    made.end()
    made.begin("backward")
    made.end()
    made.begin("forward")
    made.alloc(TENSOR, 512)
    made.end()
    forward = made.steps[0].phases["forward"]
    assert (forward.level_bytes, forward.peak_bytes) == (512, 4096)
    assert list(made.steps[0].phases) == ["forward", "backward"]


@given(st.lists(st.integers(-5, 5), max_size=30))
def test_a_stretch_does_what_its_events_do(changes: list[int]) -> None:
    one_by_one, at_once = ledger(), ledger()
    level = rise = 0
    for made in (one_by_one, at_once):
        made.alloc(TENSOR, 512 * 200)
    for change in changes:
        size = 512 * abs(change)
        (one_by_one.alloc if change > 0 else one_by_one.free)(TENSOR, size)
        level += 512 * change
        rise = max(rise, level)
    at_once.rise_and_settle(rise, level)
    for made in (one_by_one, at_once):
        made.end()
    assert one_by_one.steps == at_once.steps


def test_the_snapshot_of_a_peak_adds_up_to_it_largest_first() -> None:
    made = ledger(target=("first step", "forward", 512 + 2048))
    made.alloc(TENSOR, 100)
    made.alloc(HOST, 77)
    made.alloc(OTHER, 1000)
    made.move(OTHER, TENSOR, 1000)  # a gradient that becomes another kind of tensor, without a copy
    made.alloc(OTHER, 1024)
    made.free(OTHER, 1024)
    made.temporary(OTHER, 1024)
    made.end()
    assert made.steps[0].peak_bytes == 512 + 2048
    assert [(term.name, term.place, term.size_bytes, term.num_tensors) for term in made.snapshot] == [
        ("tensor", DEVICE, 1536, 2),
        ("other", DEVICE, 1024, 1),
        ("pageable", PAGEABLE, 77, 1),
    ]
    assert sum(term.size_bytes for term in made.snapshot if term.place == DEVICE) == 2560


def test_the_snapshot_is_of_the_step_and_phase_that_were_asked_for() -> None:
    made = ledger(target=("steady state", "step", 512))
    made.alloc(TENSOR, 1)
    made.free(TENSOR, 1)
    made.end()
    made.begin_step("steady state")
    made.begin("forward")
    made.temporary(TENSOR, 1)
    made.end()
    assert made.snapshot == ()
    made.begin("step")
    made.alloc(OTHER, 1)
    assert [term.name for term in made.snapshot] == ["other"]
