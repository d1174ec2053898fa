"""Partition: the closed form of stages 1 and 2 against DeepSpeed's own rule, rank by rank."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsplan.model import ModelShape
from dsplan.partition import flat_order, flat_partitions, padded_elements, parameter_sizes

from .tapes import shape, small_shapes

Owned = list[tuple[int, int]]


def reorder(count: int, world_size: int) -> list[int]:
    """stage_1_and_2.py _round_robin_reorder, as it is written there."""
    partitions: dict[int, list[int]] = {}
    for index in range(count):
        partitions.setdefault(index % world_size, []).append(index)
    return [index for partition in partitions.values() for index in partition]


def partition_info(sizes: list[tuple[int, int]], partition_size: int, rank: int) -> tuple[Owned, list[int]]:
    """stage_1_and_2.py get_partition_info for (index, numel) in flat order; and the elements in the range."""
    start, end = partition_size * rank, partition_size * (rank + 1)
    owned, overlaps = [], []
    current = 0
    for index, numel in sizes:
        if start <= current < end or current < start < current + numel:
            owned.append((index, numel))
            overlaps.append(min(end, current + numel) - max(start, current))
        current += numel
    return owned, overlaps


def every_rank(model: ModelShape, world_size: int, *, round_robin: bool) -> list[tuple[Owned, list[int]]]:
    sizes = parameter_sizes(model)
    order = reorder(len(sizes), world_size) if round_robin else list(range(len(sizes)))
    size = padded_elements(model, world_size) // world_size
    return [partition_info([(index, sizes[index]) for index in order], size, rank) for rank in range(world_size)]


worlds = st.one_of(st.integers(1, 64), st.sampled_from([1, 2, 3, 7, 48, 63, 64]))


@settings(max_examples=150, deadline=None)
@given(small_shapes(), worlds, st.booleans())
def test_the_candidates_are_the_ends_and_the_rank_that_owns_most(
    model: ModelShape, world_size: int, round_robin: bool
) -> None:
    ranks = every_rank(model, world_size, round_robin=round_robin)
    found = flat_partitions(model, world_size, round_robin)
    as_naive = [(list(partition.owned), list(partition.slices)) for partition in found]
    # The last ranks may hold padding alone; the last with a parameter is the one that matters.
    assert as_naive[0] == next(rank for rank in reversed(ranks) if rank[0])
    assert all(candidate in ranks for candidate in as_naive)
    assert ranks[0] in as_naive
    head = len(model.parameters) - 1
    assert next(rank for rank in ranks if head in dict(rank[0])) in as_naive
    assert len(found) <= 5
    assert max(partition.owned_elements for partition in found) == max(
        sum(numel for _, numel in owned) for owned, _ in ranks
    )


@settings(max_examples=100, deadline=None)
@given(small_shapes(), worlds, st.booleans())
def test_the_slices_of_all_ranks_are_the_model(model: ModelShape, world_size: int, round_robin: bool) -> None:
    ranks = every_rank(model, world_size, round_robin=round_robin)
    assert sum(sum(overlaps) for _, overlaps in ranks) == model.num_parameters
    for partition in flat_partitions(model, world_size, round_robin):
        assert sum(partition.slices) <= partition.size
        assert all(0 < part <= numel for part, (_, numel) in zip(partition.slices, partition.owned, strict=True))


@settings(max_examples=100, deadline=None)
@given(small_shapes(), st.integers(1, 1024))
def test_the_buffer_is_padded_to_two_elements_for_every_rank(model: ModelShape, world_size: int) -> None:
    padded = padded_elements(model, world_size)
    assert padded % (2 * world_size) == 0
    assert 0 <= padded - model.num_parameters < 2 * world_size
    for partition in flat_partitions(model, world_size):
        assert partition.padded == padded
        assert partition.size * world_size == padded


@given(small_shapes(), st.integers(1, 64))
def test_round_robin_deals_the_parameters_like_cards(model: ModelShape, world_size: int) -> None:
    count = len(model.parameters)
    assert flat_order(model, world_size, round_robin=True) == reorder(count, world_size)
    assert flat_order(model, world_size, round_robin=False) == list(range(count))


def test_one_rank_owns_everything() -> None:
    model = shape()
    (only,) = flat_partitions(model, 1)
    assert only.owned == tuple(enumerate(parameter_sizes(model)))
    assert only.slices == parameter_sizes(model)
    assert only.owned_elements == model.num_parameters


@pytest.mark.parametrize("tied", [True, False])
def test_a_tied_head_is_counted_once(tied: bool) -> None:
    model = shape(tie_word_embeddings=tied)
    assert len(parameter_sizes(model)) == len(model.parameters) == 2 + 2 * 12 + (2 if tied else 3)
    assert sum(parameter_sizes(model)) == model.num_parameters


def test_a_parameter_across_an_edge_belongs_to_both_ranks_whole() -> None:
    model = shape(num_layers=1, vocab_size=4000, tie_word_embeddings=True)  # the embedding is nearly everything
    first, second = every_rank(model, 2, round_robin=False)
    assert first[0] == [(0, 64_000)]
    assert second[0][0] == (0, 64_000)
    assert first[1][0] + second[1][0] == 64_000
    worst = flat_partitions(model, 2)[0]
    assert worst.owned_elements == model.num_parameters  # the second rank keeps every gradient whole
