"""How long the allocators take for one event of a dry run: reported, not judged (pytest tests/bench)."""

from __future__ import annotations

import random
from typing import Any

import pytest

from dsplan.allocator import CachingAllocator, PinnedAllocator, parse_settings

pytestmark = pytest.mark.timing

PAIRS = 10_000
SIZES = (512, 4096, 65_536, 1 << 20, 3 << 20, 12 << 20, 100 << 20)


@pytest.mark.parametrize("configuration", ["", "expandable_segments:True", "max_split_size_mb:128"])
def test_pairs_among_a_thousand_live_blocks(benchmark: Any, configuration: str) -> None:
    """10 000 pairs of allocate and free, of mixed sizes; a pair takes the time divided by 10 000."""
    rng = random.Random(1)
    sizes = [rng.choice((*SIZES, rng.randrange(1, 1 << 28))) for _ in range(PAIRS)]
    allocator = CachingAllocator(settings=parse_settings(configuration))
    live = [allocator.allocate(size) for size in sizes[:1000]]

    def churn() -> None:
        for number, size in enumerate(sizes):
            block = allocator.allocate(size)
            place = number * 7919 % 1000
            allocator.free(live[place])
            live[place] = block

    benchmark(churn)
    benchmark.extra_info["pairs"] = PAIRS
    assert allocator.allocated_bytes == sum(block.size_bytes for block in live)


def test_pinned_pairs(benchmark: Any) -> None:
    allocator = PinnedAllocator()

    def churn() -> None:
        for _ in range(PAIRS):
            allocator.free(allocator.allocate(100_000))

    benchmark(churn)
    assert allocator.active_bytes == 0
