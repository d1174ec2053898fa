"""The one function that DeepSpeed compiles, Muon's update, with the buffers of inductor's code in place of its lines.

Compiled code takes other tensors than the lines that it was made of, and a fake tensor has no data to compile for:
which they are is known from an H200 (``dsplan.engine.muon_compiled``). New code is timed, as in a run whose machine has
nothing on its disk from an earlier one. To be imported with the first update, for the formulas come along.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from dsplan.engine.muon_compiled import CACHE_BYTES, Codes, Timed, X, compiled_changes, on_device, timed_parts

_PRECISIONS = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
HALF = "fp16"


def with_buffers(function: Callable[..., Any], room: Callable[[], int]) -> Callable[..., Any]:
    """``muon_update`` with the buffers of its compiled code; as its lines say on the CPU, and where another method
    than Gram's or single heads are asked for, of which no buffers are known.

    Args:
        room: says by how many bytes the device's level is below its highest so far.
    """
    codes = Codes()

    @functools.wraps(function)
    def update(grad: torch.Tensor, momentum: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        plain = options.get("ns_method", "gram") == "gram" and options.get("num_heads") is None
        if not plain or grad.ndim not in (2, 3) or grad.device.type == "cpu":
            return function(grad, momentum, *arguments, **options)
        shape = tuple(grad.shape), _PRECISIONS[grad.dtype], HALF
        return _replayed(grad, shape, timed_parts(*shape, exact=codes.exact) if codes.are_new(shape[0]) else (), room)

    return update


def _replayed(
    grad: torch.Tensor, shape: tuple[tuple[int, ...], str, str], timed: tuple[Timed, ...], room: Callable[[], int]
) -> torch.Tensor:
    """The update of ``grad``: what the compiled code takes and gives back, its first product among it."""
    changes = compiled_changes(*shape)
    parts = {part.place: part for part in timed}
    taken = [place for place, change in enumerate(changes) if change > 0]
    first_product, last = taken[X + 1], taken[-1]
    held: dict[int, list[torch.Tensor]] = {}
    result = grad
    for place, change in enumerate(changes):
        if place in parts:
            _time(parts[place], grad, room())
        if change < 0:
            held[-change].pop()
            continue
        if place == X:
            made = torch.empty(grad.shape, dtype=torch.float16, device=grad.device)
        elif place == first_product:  # of which the matrix library may want a workspace
            made = _squared(held[changes[X]][-1])
        elif place == last:
            result = torch.empty(grad.shape, dtype=grad.dtype, device=grad.device)
            continue
        else:
            made = torch.empty(change, dtype=torch.uint8, device=grad.device)
        held.setdefault(change, []).append(made)
        del made
    return result


def _time(part: Timed, grad: torch.Tensor, room: int) -> None:
    """Copies of what the part writes over, where they have room, else on the host; and what empties the cache."""
    copied, on_host = on_device(part, room), list(part.copies)
    for size in copied:
        on_host.remove(size)
    held = [torch.empty(size, dtype=torch.uint8, pin_memory=True) for size in on_host]
    for size in (CACHE_BYTES, *copied):
        held.append(torch.empty(size, dtype=torch.uint8, device=grad.device))
    if part.anyway:  # a product, the program's first perhaps
        _squared(torch.empty((*grad.shape[:-2], 1, 1), dtype=torch.float16, device=grad.device))
    del held


def _squared(x: torch.Tensor) -> torch.Tensor:
    """The product of X with itself, of whichever sides are shorter."""
    product = torch.bmm if x.ndim > 2 else torch.mm
    return product(x.mT, x) if x.shape[-2] > x.shape[-1] else product(x, x.mT)
