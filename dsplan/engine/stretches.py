"""Stretches: the model's programs cut where an engine wants to be called.

Between two calls only the program's own tensors come and go, so a stretch of its events is two numbers: how far it
rises over its start, and what it leaves behind.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Generic, TypeVar

from dsplan.activations import Program
from dsplan.engine.gathering import acting
from dsplan.model import ModelShape
from dsplan.tape import ALLOC, FREE, GRADIENT, PRODUCT, Event

T = TypeVar("T")
#: (rise, net, kind, index): a stretch of device events, then a gradient or a module's hook, or nothing (-1).
Stretch = tuple[int, int, int, int]
#: (rise, net) in device bytes of what an engine does at one call.
Effect = tuple[int, int]
NOTHING: Effect = (0, 0)
#: Blocks one after the other: how many do the same, and what at each call.
Runs = Sequence[tuple[int, tuple[Effect, ...]]]
#: Forward and backward of one piece.
Stretches = tuple[tuple[Stretch, ...], tuple[Stretch, ...]]


def compress(model: ModelShape, program: Program, gradients: bool, modules: bool) -> Stretches:
    """Forward and backward of a piece as stretches, cut where the engine wants to be called.

    Args:
        gradients: at every parameter's gradient.
        modules: at every hook at which stage 3 acts.
    """
    indices = gradient_indices(model)

    def stretches_of(events: tuple[Event, ...]) -> tuple[Stretch, ...]:
        return tuple(
            [
                (rise, net, kind, indices[name] if kind == GRADIENT else -1)
                for rise, net, kind, name in named_stretches(model, events, gradients, modules)
            ]
        )

    return stretches_of(program.forward), stretches_of(program.backward)


class Same(Generic[T]):
    """A thing as the key of a cache: itself, for to compare programs takes longer than to make them."""

    __slots__ = ("thing",)

    def __init__(self, thing: T) -> None:
        self.thing = thing

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and other.thing is self.thing

    def __hash__(self) -> int:
        return id(self.thing)


def named_stretches(
    model: ModelShape, events: tuple[Event, ...], gradients: bool, modules: bool
) -> Iterator[tuple[int, int, int, str]]:
    """The stretches of a program, each with the name of what comes at its end; after the last one nothing comes."""
    level = rise = 0
    acts = acting(model) if modules else None
    for kind, size, what in events:
        if kind == ALLOC:
            level += size
            if level > rise:  # noqa: PLR1730  # nothing is done so often
                rise = level
        elif kind == FREE:
            level -= size
        elif kind == PRODUCT or (gradients if kind == GRADIENT else acts is not None and acts(kind, what)):
            assert isinstance(what, str)
            yield rise, level, kind, what
            level = rise = 0
    yield rise, level, -1, ""


def together(first: Runs, second: Runs) -> Iterator[tuple[int, tuple[Effect, ...], tuple[Effect, ...]]]:
    """Two rows of the same blocks as one: how many have the same in both, and what in each."""
    others = iter(second)
    left = 0
    other: tuple[Effect, ...] = ()
    for times, each in first:
        rest = times
        while rest:
            if not left:
                left, other = next(others)
            both = min(rest, left)
            yield both, each, other
            rest, left = rest - both, left - both


def first_of_block(model: ModelShape, layer: int) -> int:
    """Index of a block's first parameter, in torch's order; the blocks are alike."""
    return len(model.embedding_parameters) + layer * len(model.block_parameters)


@lru_cache(maxsize=64)
def gradient_indices(model: ModelShape) -> dict[str, int]:
    """Index of each parameter: within its block, or the complement of its index in the model."""
    indices = {parameter.name: index for index, parameter in enumerate(model.block_parameters)}
    first_of_head = first_of_block(model, model.num_layers)
    for index, parameter in enumerate(model.embedding_parameters):
        indices[parameter.name] = ~index
    for index, parameter in enumerate(model.head_parameters):
        indices[parameter.name] = ~(first_of_head + index)
    return indices
