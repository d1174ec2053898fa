"""Rotary positions: ``x · cos + rotate_half(x) · sin`` of queries or keys (modeling_llama.py apply_rotary_pos_emb)."""

from __future__ import annotations

from dsplan.ledger import Term
from dsplan.operators import BACKWARD, WORKING
from dsplan.tape import Backward, Storage, Tape, Tensor


def rotate(t: Tape, x: Tensor, term: Term) -> Tensor:
    """The rotated heads, a new tensor; neither product saves ``x``, for cos and sin need no gradient."""
    size = size_of(x)
    by_cos = t.tensor(size, WORKING)
    negated = t.tensor(size // 2, WORKING)
    halves = t.tensor(size, WORKING)
    t.drop(negated)
    by_sin = t.tensor(size, WORKING)
    t.drop(halves)
    out = t.tensor(size, term)
    t.drop(by_cos, by_sin)

    def backward(gradient: Storage) -> None:
        d_halves = t.allocate(size, BACKWARD)
        d_negated = t.allocate(size // 2, BACKWARD)
        # slice_backward: each half's gradient in a tensor of the whole.
        first = t.allocate(size, BACKWARD)
        t.release(d_negated)
        second = t.allocate(size, BACKWARD)
        t.release(d_halves)
        t.give(x, first)
        t.give(x, second)
        by = t.allocate(size, BACKWARD)
        t.release(gradient)
        t.give(x, by)

    return t.node(out, backward)


def size_of(x: Tensor) -> int:
    """Bytes of a tensor: of its storage, unless it is a part of one."""
    return int(getattr(x, "size", x.storage.size))


class Part(Tensor):
    """A part of a tensor: what reads it makes tensors of its own size."""

    __slots__ = ("size",)

    def __init__(self, storage: Storage, size: int) -> None:
        super().__init__(storage)
        self.size = size


def part_of(t: Tape, x: Tensor, size: int) -> Part:
    """``x[..., a:b]``: its gradient comes back in a tensor of the whole (slice_backward)."""
    part = Part(t.hold(x.storage), size)

    def backward(gradient: Storage) -> None:
        padded = t.allocate(size_of(x), BACKWARD)
        t.release(gradient)
        t.give(x, padded)

    t.node(part, backward)
    return part


def rotate_parts(t: Tape, q: Tensor, k: Tensor, share: tuple[int, int], term: Term) -> tuple[Tensor, Tensor]:
    """``cat((rotated part, rest))`` of queries and keys (modeling_phi3.py apply_rotary_pos_emb).

    ``share``: rotating elements of a head, of how many. The rest may be empty, and is joined all the same.
    """
    parts, rests = [], []
    for x in (q, k):
        parts.append(part_of(t, x, size_of(x) * share[0] // share[1]))
        rests.append(part_of(t, x, size_of(x) - parts[-1].size))
    joined = []
    for x, part, rest in zip((q, k), parts, rests, strict=True):
        rotated = rotate(t, part, WORKING)
        out = t.tensor(size_of(x), term)
        t.drop(rotated)
        t.node(out, _split_between(t, rotated, rest))
        joined.append(out)
    t.drop(*parts, *rests)
    return joined[0], joined[1]


def _split_between(t: Tape, rotated: Tensor, rest: Part) -> Backward:
    """cat's backward: views of the gradient, which lives until both have been used."""

    def backward(gradient: Storage) -> None:
        t.give(rotated, t.hold(gradient))
        if rest.size:
            t.give(rest, t.hold(gradient))
        t.release(gradient)

    return backward


def contiguous_gradient(t: Tape, x: Tensor) -> Tensor:
    """A view of the projection's output as heads, whose gradient has to be copied into the projection's order."""

    def backward(gradient: Storage) -> None:
        copy = t.allocate(size_of(x), BACKWARD)
        t.release(gradient)
        t.give(x, copy)

    return t.node(Part(t.hold(x.storage), size_of(x)), backward)
