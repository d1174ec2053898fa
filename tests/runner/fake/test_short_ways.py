"""What is done for fake tensors without their dispatch comes to the same."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from runner.device.fake.tracking import _cat
from runner.device.fake.views import get_item, narrow


@pytest.mark.parametrize("arguments", [(0, 3, 4), (0, 0, 0), (-1, 2, 5), (1, -4, 2), (0, 6, 0)])
def test_a_narrowed_tensor_is_the_same_view(arguments: tuple[int, int, int]) -> None:
    with FakeTensorMode():
        tensor = torch.empty(8, 9, dtype=torch.bfloat16)[::1, 1:]
        expected, found = torch.Tensor.narrow(tensor, *arguments), narrow(tensor, *arguments)
    assert type(found) is type(expected) is FakeTensor
    for attribute in ("shape", "dtype", "device", "layout", "requires_grad"):
        assert getattr(found, attribute) == getattr(expected, attribute)
    assert (found.stride(), found.storage_offset()) == (expected.stride(), expected.storage_offset())
    assert found.untyped_storage()._cdata == tensor.untyped_storage()._cdata


@pytest.mark.parametrize(
    "index", [slice(2, 5), slice(None), slice(-3, None), slice(5, 2), slice(0, 99), slice(0, 8, 2), 3, (0, slice(1, 2))]
)
def test_a_slice_is_the_same_view(index: object) -> None:
    with FakeTensorMode():
        tensor = torch.empty(8, 9)
        expected, found = torch.Tensor.__getitem__(tensor, index), get_item(tensor, index)
    assert type(found) is FakeTensor
    assert (found.shape, found.stride()) == (expected.shape, expected.stride())
    assert found.storage_offset() == expected.storage_offset()
    assert found.untyped_storage()._cdata == tensor.untyped_storage()._cdata


@pytest.mark.parametrize("arguments", [(0, 7, 2), (2, 0, 1), (0, 0, -1), (0, 9, 0)])
def test_what_cannot_be_narrowed_is_the_same_error(arguments: tuple[int, int, int]) -> None:
    with FakeTensorMode():
        tensor = torch.empty(8, 9)
        with pytest.raises((IndexError, RuntimeError)) as expected:
            torch.Tensor.narrow(tensor, *arguments)
        with pytest.raises(type(expected.value)):
            narrow(tensor, *arguments)


def test_what_autograd_follows_goes_the_long_way() -> None:
    with FakeTensorMode():
        tensor = torch.empty(8, requires_grad=True)
        assert narrow(tensor, 0, 1, 2).grad_fn is not None


def test_tensors_are_joined_as_by_torch() -> None:
    with FakeTensorMode():
        parts = [torch.empty(size, 3, dtype=torch.float16) for size in range(12)]
        expected, found = torch.ops.aten.cat.default(parts), _cat(parts)
        wide = _cat([part.t() for part in parts], 1)
    assert type(found) is FakeTensor
    assert (found.shape, found.dtype, found.device) == (expected.shape, expected.dtype, expected.device)
    assert found.stride() == expected.stride()
    assert wide.shape == (3, sum(range(12)))
    assert found.untyped_storage().nbytes() == expected.untyped_storage().nbytes()
