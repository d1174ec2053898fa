"""runner.device.fake.inductor: Muon's update takes the buffers of its compiled code."""

from __future__ import annotations

import weakref
from itertools import accumulate
from typing import Any

import pytest

pytest.importorskip("torch")

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dsplan.engine.muon_compiled import CACHE_BYTES, compiled_changes
from runner.device.fake.compiler import is_muons
from runner.device.fake.inductor import with_buffers

PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


class Live(TorchDispatchMode):
    """Bytes of the tensors that are made while it is there and live, after each operator."""

    def __init__(self) -> None:
        super().__init__()
        self.level = 0
        self.levels: list[int] = []
        self.products = self.pinned = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        pins = kwargs.pop("pin_memory", None)  # which needs a device that this machine may not have
        made = func(*args, **kwargs)
        storage = made.untyped_storage()
        if all(storage._cdata != each.untyped_storage()._cdata for each in args if isinstance(each, torch.Tensor)):
            size = storage.nbytes()
            self.level += size
            weakref.finalize(made, self._gone, size)
            self.levels.append(self.level)
            self.pinned += size if pins else 0
        self.products += func in (torch.ops.aten.mm.default, torch.ops.aten.bmm.default)
        return made

    def _gone(self, size: int) -> None:
        self.level -= size


def lines(grad: torch.Tensor, momentum: torch.Tensor, **_: Any) -> str:
    return "as its lines say"


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("shape", [(24, 24), (40, 24), (24, 40), (3, 24, 40)])
def test_it_takes_and_gives_back_what_the_formulas_know(shape: tuple[int, ...], precision: str) -> None:
    grad = torch.empty(shape, dtype=PRECISIONS[precision], device="meta")
    compiled = with_buffers(lines, lambda: 1 << 40)
    compiled(grad, grad)  # timed
    with Live() as live:
        update = compiled(grad, grad, 0.95, ns_method="gram", is_expert_group=False)
    changes = compiled_changes(shape, precision, "fp16")
    assert live.levels == [level for level, change in zip(accumulate(changes), changes, strict=True) if change > 0]
    assert (update.shape, update.dtype, live.products) == (grad.shape, grad.dtype, 1)
    assert live.level == grad.numel() * grad.element_size()  # the update


@pytest.mark.parametrize(("room", "on_host"), [(1 << 40, 0), (60, 4)])
def test_new_code_is_timed_on_copies_where_they_have_room(room: int, on_host: int) -> None:
    grad = torch.empty(24, 40, dtype=torch.float32, device="meta")
    compiled = with_buffers(lines, lambda: room)
    with Live() as live:
        compiled(grad, grad)
    last = 2 * 24 * 40 + 4 * 24 * 40 + 1  # X, the update and the flag
    assert max(live.levels) == last + CACHE_BYTES + 4 * 4 * 24 * 40
    assert live.pinned == (4 * 4 * 24 * 40 + 2 * 24 * 40 if on_host else 0)
    once = len(live.levels)
    with live:
        compiled(grad, grad)
    assert len(live.levels) - once == len(
        [change for change in compiled_changes((24, 40), "fp32", "fp16") if change > 0]
    )


@pytest.mark.parametrize(
    ("grad", "options"),
    [
        (torch.empty(4, 8), {}),
        (torch.empty(4, 8, device="meta"), {"ns_method": "standard"}),
        (torch.empty(4, 8, device="meta"), {"num_heads": 2}),
        (torch.empty(4, 8, 3, 3, device="meta"), {}),
    ],
    ids=["on the CPU", "another method", "by heads", "a convolution"],
)
def test_what_was_never_recorded_runs_as_its_lines_say(grad: torch.Tensor, options: dict[str, Any]) -> None:
    assert with_buffers(lines, lambda: 0)(grad, grad, **options) == "as its lines say"


def test_nothing_else_is_taken_for_it() -> None:
    assert not is_muons(lines)
    lines_of_deepspeed = type(lines)(lines.__code__, globals(), "muon_update")
    lines_of_deepspeed.__module__ = "deepspeed.runtime.zero.muon.original_muon"
    assert is_muons(lines_of_deepspeed)
