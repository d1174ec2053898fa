"""Rotary positions: ``x · cos + rotate_half(x) · sin`` of queries or keys (modeling_llama.py apply_rotary_pos_emb)."""

from __future__ import annotations

from collections.abc import Sequence

from dsplan.decoders.parts import Part, joined, part_of, size_of
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


def rotate_parts(t: Tape, q: Tensor, k: Tensor, share: tuple[int, int], term: Term) -> tuple[Tensor, Tensor]:
    """``cat((rotated part, rest))`` of queries and keys, one after the other (modeling_phi3.py apply_rotary_pos_emb).

    ``share``: rotating elements of a head, of how many. The rest may be empty, and is joined all the same.
    """
    parts, rests = _parted(t, (q, k), share)
    found = []
    for x, part, rest in zip((q, k), parts, rests, strict=True):
        rotated = rotate(t, part, WORKING)
        found.append(joined(t, rotated, rest, size_of(x), term))
        t.drop(rotated)
    t.drop(*parts, *rests)
    return found[0], found[1]


def rotate_parts_first(
    t: Tape, q: Tensor, k: Tensor, share: tuple[int, int], term: Term, held: list[Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """The same, where both have rotated before they are joined (modeling_gpt_neox.py apply_rotary_pos_emb).

    ``held``: takes the parts, where the caller's names have them still (modeling_stablelm.py StableLmAttention).
    """
    parts, rests = _parted(t, (q, k), share)
    turned = [rotate(t, part, WORKING) for part in parts]
    found = []
    for x, rotated, rest in zip((q, k), turned, rests, strict=True):
        found.append(joined(t, rotated, rest, size_of(x), term))
        if held is None:
            t.drop(rotated)
    if held is None:
        t.drop(*parts, *rests)
    else:
        held += [*turned, *parts, *rests]
    return found[0], found[1]


def _parted(t: Tape, whole: Sequence[Tensor], share: tuple[int, int]) -> tuple[list[Part], list[Part]]:
    """The parts that rotate, and the rests."""
    parts, rests = [], []
    for x in whole:
        parts.append(part_of(t, x, size_of(x) * share[0] // share[1]))
        rests.append(part_of(t, x, size_of(x) - parts[-1].size))
    return parts, rests


def rotate_pairs(t: Tape, q: Part, k: Part, term: Term) -> tuple[Tensor, Tensor]:
    """Neighbours of queries and keys as pairs (modeling_deepseek_v3.py apply_rotary_pos_emb_interleave)."""
    halves = [(part_of(t, x, x.size // 2), part_of(t, x, x.size // 2)) for x in (q, k)]
    found = []
    for x, (first, second) in zip((q, k), halves, strict=True):
        turned = _combined(t, first, second, negates=True)
        other = _combined(t, second, first, negates=False)
        found.append(joined(t, turned, other, x.size, term))
        t.drop(other, turned)
    t.drop(*halves[0], *halves[1])
    return found[0], found[1]


def _combined(t: Tape, x: Part, y: Part, *, negates: bool) -> Tensor:
    """``x · cos - y · sin``, or their sum: no product saves its operands."""
    by_cos, by_sin = _cast(t, x, x.size), _cast(t, y, x.size)
    out = t.tensor(x.size, WORKING)

    def backward(gradient: Storage) -> None:
        t.give(by_cos, t.hold(gradient))
        if negates:
            t.give(by_sin, t.allocate(x.size, BACKWARD))
            t.release(gradient)
        else:
            t.give(by_sin, gradient)

    t.node(out, backward)
    t.drop(by_cos, by_sin)
    return out


def rotate_complex(t: Tape, q: Part, k: Part, element_bytes: int, waves: int) -> tuple[Tensor, Tensor]:
    """Neighbours as complex numbers, in fp32 (modeling_deepseek_v2.py apply_rotary_emb).

    ``waves``: bytes of the complex numbers that they are multiplied with.
    """
    casts = element_bytes != 4
    numbers = [_cast(t, x, 4 * x.size // element_bytes) if casts else t.view(x.storage) for x in (q, k)]
    found = []
    for x, wide in zip((q, k), numbers, strict=True):
        if not casts:
            t.node(wide, _passes(t, x))
        product = _times_waves(t, wide, 4 * x.size // element_bytes, waves, copies=x is q and not casts)
        if casts:
            found.append(_cast(t, product, x.size, copies=x is q))
            t.drop(product)
        else:
            found.append(product)
    t.drop(*numbers)
    return found[0], found[1]


def _passes(t: Tape, x: Tensor) -> Backward:
    return lambda gradient: t.give(x, gradient)


def _times_waves(t: Tape, x: Tensor, size: int, waves: int, *, copies: bool) -> Tensor:
    """A product with complex numbers that need no gradient: backward is one with their conjugates, which are copied."""
    out = t.tensor(size, WORKING)

    def backward(gradient: Storage) -> None:
        gradient = _contiguous(t, gradient, size) if copies else gradient
        conjugates = t.allocate(waves, BACKWARD)
        dx = t.allocate(size, BACKWARD)
        t.release(conjugates)
        t.release(gradient)
        t.give(x, dx)

    return t.node(out, backward)


def _cast(t: Tape, x: Tensor, size: int, *, copies: bool = False) -> Tensor:
    """A tensor made of ``x`` that saves nothing: a cast, or a product with a constant.

    ``copies``: its gradient comes in another order of heads, and is copied.
    """
    out = t.tensor(size, WORKING)

    def backward(gradient: Storage) -> None:
        dx = t.allocate(size_of(x), BACKWARD)
        t.release(gradient)
        t.give(x, _contiguous(t, dx, size_of(x)) if copies else dx)

    return t.node(out, backward)


def _contiguous(t: Tape, gradient: Storage, size: int) -> Storage:
    copy = t.allocate(size, BACKWARD)
    t.release(gradient)
    return copy
