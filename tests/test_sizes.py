"""Sizes in a row: what is found by runs is what is found by going through all."""

from __future__ import annotations

from itertools import accumulate

from hypothesis import given
from hypothesis import strategies as st

from dsplan.kernels import Kernels
from dsplan.sizes import Sizes, total_of

RUNS = st.lists(st.tuples(st.lists(st.integers(0, 5), max_size=4).map(tuple), st.integers(0, 3)), max_size=4)


@given(RUNS)
def test_an_element_is_in_the_tensor_in_which_it_is_counted(runs: list[tuple[tuple[int, ...], int]]) -> None:
    sizes = Sizes.of(runs)
    begins = [0, *accumulate(sizes)]
    owners = [(index, begins[index], begins[index + 1]) for index, size in enumerate(sizes) for _ in range(size)]
    assert [sizes.span(element) for element in range(sizes.sum)] == owners
    assert sizes.span(sizes.sum) == sizes.span(sizes.sum + 7) == (len(sizes), sizes.sum, sizes.sum)
    assert [sizes.begin(index) for index in range(len(sizes))] == begins[:-1]


@given(RUNS, st.integers(1, 4))
def test_larger_ones_are_those_of_each(runs: list[tuple[tuple[int, ...], int]], width: int) -> None:
    sizes = Sizes.of(runs)
    scaled, each = sizes.times(width), [width * size for size in sizes]
    assert (list(scaled), len(scaled)) == (each, len(each))
    assert all(size in scaled for size in each)
    assert -1 not in scaled
    for kernels in (None, Kernels(), Kernels(block_bytes=1)):
        assert scaled.total(kernels) == total_of(each, kernels)
