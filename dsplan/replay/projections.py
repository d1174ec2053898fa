"""Query, key and value as three linear layers, as the benchmark's minGPT of 2020 has them; dsplan's has one for all.

The parameters are the same. But three weights are gathered and reduced one by one, and each may fit a bucket that all
of them together exceed.
"""

from __future__ import annotations

from dataclasses import dataclass

from dsplan.engine.coordinator import Mark, Module
from dsplan.model import ModelShape
from dsplan.partition import parameter_sizes
from dsplan.tape import ENTER, ENTER_BACKWARD, LEAVE, LEAVE_BACKWARD

FUSED = "attn.c_attn"
#: In the order in which the forward pass calls them; they are made in this order, too.
PARTS = ("key", "query", "value")


@dataclass(frozen=True, slots=True)
class Separated:
    """Elements of every parameter once they are apart, and where each fused parameter's pieces are."""

    sizes: tuple[int, ...]
    pieces: tuple[tuple[int, ...], ...]


def together(model: ModelShape) -> Separated:
    """The parameters as dsplan has them."""
    sizes = parameter_sizes(model)
    return Separated(sizes, tuple((index,) for index in range(len(sizes))))


def apart(model: ModelShape) -> Separated:
    """The parameters with key, query and value apart: weight and bias of each, one after the other."""
    sizes: list[int] = []
    pieces: list[tuple[int, ...]] = []
    for parameter in model.parameters:
        if FUSED not in parameter.name:
            pieces.append((len(sizes),))
            sizes.append(parameter.numel)
        elif parameter.name.endswith("weight"):  # the bias, which comes next, fills the gaps
            pieces.append(tuple(len(sizes) + 2 * part for part in range(len(PARTS))))
            sizes += [parameter.numel // len(PARTS), 0] * len(PARTS)
        else:
            places = tuple(place + 1 for place in pieces[-1])
            pieces.append(places)
            for place in places:
                sizes[place] = parameter.numel // len(PARTS)
    return Separated(tuple(sizes), tuple(pieces))


def hooks(marks: list[Mark], separated: Separated) -> list[list[Mark]]:
    """For each hook of the fused model those of the separated one: three layers work one after the other."""
    modules: dict[int, tuple[Module, ...]] = {}

    def split(module: Module) -> tuple[Module, ...]:
        if id(module) not in modules:
            pieces = [separated.pieces[parameter] for parameter in module.parameters]
            parts = PARTS if module.name.endswith(FUSED) and len(pieces[0]) > 1 else ("",)
            modules[id(module)] = tuple(
                Module(f"{module.name}.{name}".rstrip("."), tuple(piece[part] for piece in pieces))
                for part, name in enumerate(parts)
            )
        return modules[id(module)]

    return [_hooks(kind, split(module)) for kind, module in marks]


def _hooks(kind: int, modules: tuple[Module, ...]) -> list[Mark]:
    """The last layer is left with the hook that leaves the fused one; the others as soon as they are done."""
    first, leaves = (ENTER, LEAVE) if kind in (ENTER, LEAVE) else (ENTER_BACKWARD, LEAVE_BACKWARD)
    ordered = modules if first == ENTER else modules[::-1]
    if kind == leaves:
        return [(kind, ordered[-1])]
    found: list[Mark] = []
    for module in ordered[:-1]:
        found += [(kind, module), (leaves, module)]
    return [*found, (kind, ordered[-1])]
