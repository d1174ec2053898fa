"""Elementary attention of dry runs: torch's own numbers, and the kernels that torch would have refused."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.engine


def _tensors(dtype: Any, heads: int) -> tuple[Any, Any, Any, Any]:
    import torch

    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 4, 24, 8), (2, heads, 24, 8), (2, heads, 24, 8))
    q, k, v = (torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes)
    return q, k, v, torch.rand((2, 1, 24, 24), generator=generator) > 0.2


@pytest.mark.parametrize(
    ("type_name", "heads", "masked", "gqa"),
    [
        ("bfloat16", 1, True, False),
        ("float16", 4, False, False),
        ("float32", 2, False, True),
        ("float32", 1, True, True),
    ],
)
def test_it_is_what_torch_computes(type_name: str, heads: int, masked: bool, gqa: bool) -> None:
    """Values and gradients of ``_scaled_dot_product_attention_math``, to the bit."""
    import torch

    from runner.device.fake.elementary import additive, elementary_attention

    q, k, v, mask = _tensors(getattr(torch, type_name), heads)
    given = mask if masked else None
    ours = elementary_attention(q, k, v, given, 0.0, not masked, None, gqa)
    bias = None if given is None else additive(given, q.dtype)
    theirs = torch.ops.aten._scaled_dot_product_attention_math(q, k, v, bias, 0.0, not masked, enable_gqa=gqa)[0]
    assert torch.equal(ours, theirs)
    gradients = [torch.autograd.grad(found.float().square().sum(), (q, k, v)) for found in (ours, theirs)]
    assert all(torch.equal(mine, other) for mine, other in zip(*gradients, strict=True))


def test_a_row_that_is_masked_as_a_whole_becomes_zeros() -> None:
    import torch

    from runner.device.fake.elementary import elementary_attention

    q, k, v, mask = _tensors(torch.float32, 4)
    mask[:, :, 3] = False
    found = elementary_attention(q, k, v, mask, 0.0, False, None, False)
    assert torch.equal(found[:, :, 3], torch.zeros_like(found[:, :, 3]))


def test_heads_that_differ_are_left_to_it_unless_flash_is_told_of_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """sdp_utils_cpp.h, check_batch_size_and_num_heads_dense."""
    import torch

    from dsplan.kernels import EFFICIENT, FLASH, Kernels
    from runner.device.fake import attention

    calls: list[str] = []
    monkeypatch.setattr(attention, "elementary_attention", lambda *_: calls.append("elementary"))
    monkeypatch.setattr(attention, "_flash", lambda *_: calls.append("flash"))
    q, k, v, mask = _tensors(torch.bfloat16, 1)
    for kernel, given, gqa in ((FLASH, None, True), (FLASH, None, False), (FLASH, mask, True), (EFFICIENT, None, True)):
        attention._attention(Kernels(fused_attention=kernel), q, k, v, given, 0.0, given is None, None, gqa)
    assert calls == ["flash", "elementary", "elementary", "elementary"]
