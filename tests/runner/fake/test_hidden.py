"""runner.device.fake.hidden: what kernels take unseen, operator by operator."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("torch")

import torch

from dsplan.catalogue import accelerator
from dsplan.kernels import kernels_of
from dsplan.units import MIB
from runner.device.fake.hidden import Workspaces, transients
from runner.device.fake.memory import DEVICE, PAGEABLE

aten = torch.ops.aten
H200 = kernels_of(accelerator("h200"))
MATRIX = torch.empty(4, 4)
BIAS = torch.empty(4)


def taken(function: Any, args: tuple[Any, ...], result: Any) -> list[tuple[str, int]]:
    """What the kernel takes, one part after the other."""
    return [each for part in transients(function, args, {}, result, H200) for each in part]


def test_the_first_product_of_a_stream_takes_the_workspace_for_good() -> None:
    workspaces = Workspaces(H200)
    assert workspaces.wanted(aten.mm.default, (MATRIX, MATRIX), 0) == [H200.workspace_bytes] == [32 * MIB]
    assert workspaces.wanted(aten.bmm.default, (MATRIX, MATRIX), 0) == []
    assert workspaces.wanted(aten.mm.default, (MATRIX, MATRIX), 1) == [32 * MIB]
    assert workspaces.wanted(aten.add.Tensor, (MATRIX, MATRIX), 2) == []


def test_a_product_with_a_bias_takes_the_light_library_s_workspace_as_well() -> None:
    workspaces = Workspaces(H200)
    assert workspaces.wanted(aten.addmm.default, (BIAS, MATRIX, MATRIX), 0) == [32 * MIB, MIB]
    assert workspaces.wanted(aten.addmm.default, (BIAS, MATRIX, MATRIX), 0) == []
    assert Workspaces(H200).wanted(aten.addmm.default, (MATRIX, MATRIX, MATRIX), 0) == [32 * MIB]


def test_a_device_without_a_workspace_takes_none() -> None:
    none = replace(H200, workspace_bytes=0, lt_workspace_bytes=0)
    assert Workspaces(none).wanted(aten.addmm.default, (BIAS, MATRIX, MATRIX), 0) == []


def test_the_backward_pass_has_a_thread_and_a_workspace_of_its_own() -> None:
    workspaces = Workspaces(H200)
    seen = []

    class Product(torch.autograd.Function):
        @staticmethod
        def forward(_context: object, x: torch.Tensor) -> torch.Tensor:
            seen.append(workspaces.wanted(aten.mm.default, (x, x), 0))
            return x.clone()

        @staticmethod
        def backward(_context: object, gradient: torch.Tensor) -> torch.Tensor:
            seen.append(workspaces.wanted(aten.mm.default, (gradient, gradient), 0))
            return gradient

    Product.apply(MATRIX.clone().requires_grad_()).sum().backward()
    assert seen == [[32 * MIB], [32 * MIB]]


def test_an_operator_without_a_rule_takes_nothing() -> None:
    assert taken(aten.add.Tensor, (MATRIX, MATRIX), MATRIX) == []


def test_isinf_takes_the_absolute_values() -> None:
    assert taken(aten.isinf.default, (torch.empty(10, dtype=torch.bfloat16),), None) == [(PAGEABLE, 20)]
    on_device = torch.empty(10, dtype=torch.bfloat16, device="meta")  # any device but the CPU
    assert taken(aten.isinf.default, (on_device,), None) == [(DEVICE, 20)]
    assert taken(aten.isinf.default, (torch.empty(0),), None) == []


@pytest.mark.parametrize("copy", [True, False])
def test_a_copy_within_a_device_or_a_type_needs_nothing_between(copy: bool) -> None:
    half, single = torch.empty(10, dtype=torch.half), torch.empty(10)
    assert taken(aten.copy_.default, (single, half if copy else single), single) == []
    meta = torch.empty(10, device="meta")
    assert taken(aten._to_copy.default, (single,), meta) == []


def test_a_copy_to_the_device_that_casts_goes_through_the_host_in_the_device_s_type() -> None:
    on_host, on_device = torch.empty(10), torch.empty(10, dtype=torch.half, device="meta")
    for function, args, result in (
        (aten.copy_.default, (on_device, on_host), on_device),
        (aten.copy_.default, (on_host, on_device), on_host),
        (aten._to_copy.default, (on_host,), on_device),
        (aten._to_copy.default, (on_device,), on_host),
    ):
        assert taken(function, args, result) == [("pageable", 20)]


def test_flash_attention_s_backward_sums_in_fp32_in_padded_rows() -> None:
    query = torch.empty(2, 3, 100, 40, dtype=torch.bfloat16, device="meta")
    function = aten._scaled_dot_product_flash_attention_backward.default
    rows = 2 * 3 * 128
    sums = [(DEVICE, 4 * rows), (DEVICE, 4 * rows * 64)]
    assert taken(function, (None, query, query), None) == sums
    grouped = torch.empty(2, 1, 100, 40, dtype=torch.bfloat16, device="meta")  # gradients for every head of the queries
    expanded = [(DEVICE, 2 * 2 * 100 * 3 * 40)] * 2
    assert taken(function, (None, query, grouped), None) == [*sums, *expanded]


def test_softmax_s_backward_takes_the_product_of_gradient_and_output() -> None:
    gradient, output = (torch.empty(2, 3, 8, 8, dtype=torch.bfloat16, device="meta") for _ in range(2))
    assert taken(aten._softmax_backward_data.default, (gradient, output, -1, torch.bfloat16), None) == [(DEVICE, 768)]


def test_an_embedding_s_backward_sorts_many_indices() -> None:
    gradient = torch.empty(5000, 700, dtype=torch.bfloat16, device="meta")
    few, many = (torch.empty(number, dtype=torch.int64, device="meta") for number in (3072, 5000))
    function = aten.embedding_dense_backward.default
    assert taken(function, (gradient[:3072], few, 50_257, -1, False), None) == []
    assert taken(function, (gradient, many, 50_257, -1, False), None)[-1] == (DEVICE, 15_400_000)


@pytest.mark.parametrize("dimensions", [[0], [-2]])
def test_a_sum_over_rows_takes_what_its_blocks_leave_to_one_another(dimensions: list[int]) -> None:
    rows = torch.empty(2048, 3072, device="meta")
    assert taken(aten.sum.dim_IntList, (rows, dimensions), rows[0]) == [(DEVICE, 50_331_648), (DEVICE, 96)]
    assert taken(aten.sum.dim_IntList, (torch.empty(2048, 3072), dimensions), rows[0]) == []


def test_memory_efficient_attention_s_backward_in_fp32_multiplies_first_and_then_sums_in_blocks() -> None:
    query = torch.empty(4, 12, 1024, 64, device="meta")
    function = aten._scaled_dot_product_efficient_attention_backward.default
    parts = list(transients(function, (query, query, query, query), {}, None, H200))
    assert parts == [[(DEVICE, 12_582_912), (DEVICE, 196_608)], [(DEVICE, 196_608), (DEVICE, 12_595_200)]]
