"""Workspaces of reductions, against the requests that an H200's allocator recorded (torch 2.11, 2026-11-21).

The sizes are read off ``python -m tests.gpu.history`` of the two cases that are named, each as often as it says.
"""

from __future__ import annotations

import pytest

from dsplan.embeddings import embedding_backward_workspaces
from dsplan.reductions import Multiprocessors, Workspace, column_sum_workspace, reduction_workspaces
from dsplan.units import GIB

H200 = Multiprocessors(132, 2048)
A100 = Multiprocessors(108, 2048)


@pytest.mark.parametrize(
    ("rows", "columns", "element_bytes", "found"),
    [
        # 453M-z3-fp32-n1: 16, 8 and 8 times.
        (2048, 3072, 4, (50_331_648, 96)),
        (2048, 9216, 4, (141_557_760, 288)),
        (2048, 12_288, 4, (138_412_032, 384)),
        # heads-of-100-z3-n1: 42, 21 and 21 times.
        (5000, 700, 2, (28_313_600, 24)),
        (5000, 2100, 2, (84_940_800, 68)),
        (5000, 2800, 2, (113_254_400, 88)),
    ],
)
def test_a_bias_gradient_takes_what_the_card_was_asked_for(
    rows: int, columns: int, element_bytes: int, found: tuple[int, int]
) -> None:
    assert column_sum_workspace(rows, columns, H200, element_bytes=element_bytes) == Workspace(*found)


@pytest.mark.parametrize(
    ("elements", "found"),
    # 453M-z3-fp32-n1, norms in double: of a weight of 3072 x 3072; of a norm's weight nothing.
    [(3072 * 3072, [Workspace(4224, 4)]), (3072, [])],
)
def test_a_norm_takes_what_the_card_was_asked_for(elements: int, found: list[Workspace]) -> None:
    assert (
        reduction_workspaces((elements,), (1,), (0,), H200, element_bytes=8, accumulator_bytes=8, input_vector=4)
        == found
    )


def test_few_rows_stay_within_a_block() -> None:
    assert column_sum_workspace(64, 768, H200, element_bytes=2) is None


def test_more_multiprocessors_never_take_less() -> None:
    small, large = (column_sum_workspace(4096, 3072, device, element_bytes=2) for device in (A100, H200))
    assert small is not None
    assert large is not None
    assert small <= large


def test_dimensions_that_follow_one_another_are_one() -> None:
    """A gradient of (batch, tokens, width) is summed as one of (batch * tokens, width)."""
    flat = reduction_workspaces((2048, 3072), (3072, 1), (0,), H200, element_bytes=4)
    assert reduction_workspaces((16, 128, 3072), (128 * 3072, 3072, 1), (0, 1), H200, element_bytes=4) == flat


def test_what_32_bits_cannot_address_is_reduced_in_parts() -> None:
    elements = 3 * GIB // 4
    assert len(reduction_workspaces((elements,), (1,), (0,), H200, element_bytes=4)) == 2


def test_nothing_is_taken_of_one_element() -> None:
    assert reduction_workspaces((1, 1), (1, 1), (0, 1), H200, element_bytes=4) == []


def test_a_tables_gradient_takes_its_parts_in_fp32() -> None:
    """heads-of-100-z3-n1: 5,000 tokens, 50,257 rows of 700; the last three requests on the card."""
    assert embedding_backward_workspaces(5000, 50_257, 700)[-3:] == (8, 44_000, 15_400_000)
    assert embedding_backward_workspaces(2048, 50_257, 3072) == ()
