"""The trace of stage 3's submodules, from hooks that are told in parts: what alike blocks have is told once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, chain

from dsplan.engine.hook_parts import HookPart
from dsplan.engine.hooks import Module
from dsplan.tape import ENTER, ENTER_BACKWARD


@dataclass(frozen=True, slots=True)
class Segment:
    """What a part is in the trace of a run: its first step and entry of the queue, and how many of each a block has."""

    step: int
    steps: int
    entry: int
    entries: int


class Uses(dict[int, list[int]]):
    """The steps at which each parameter is used, in order; those of blocks are worked out when they are asked for."""

    def __init__(self) -> None:
        super().__init__()
        self._rows: list[tuple[HookPart, Segment, dict[int, list[int]]]] = []

    def add(self, part: HookPart, segment: Segment, modules: Iterable[Module]) -> None:
        of_first: dict[int, list[int]] = {}
        for place, module in enumerate(modules):
            for parameter in module.parameters:
                of_first.setdefault(parameter, []).append(segment.step + place)
        if part.modules is not None:
            self._rows.append((part, segment, of_first))
            return
        for parameter, steps in of_first.items():
            self[parameter] = sorted([*self.get(parameter, ()), *steps])

    def __missing__(self, parameter: int) -> list[int]:
        found = []
        for part, segment, of_first in self._rows:
            assert part.modules is not None
            layer, place = divmod(parameter - part.modules.first, part.modules.stride)
            number = (layer - part.layers[0]) * part.layers.step
            of = part.modules.first + part.layers[0] * part.modules.stride + place
            found += [step + number * segment.steps for step in of_first.get(of, ())]
        self[parameter] = found
        return found


class PartsTrace:
    """What :class:`dsplan.engine.coordinator.Coordinator` makes of the submodules in the order in which they come.

    Args:
        parts: the hooks of a pass.
        sizes: elements of every parameter.

    Attributes:
        segments: what each part is in it.
        rows: those of alike blocks, with their layers in order.
        uses: the steps at which each parameter is used.
        queue: every use as (parameter, step), in order.
        elements_before: of each step what the submodules before it own, in elements.
    """

    def __init__(self, parts: Sequence[HookPart], sizes: Sequence[int]) -> None:
        self.segments: list[Segment] = []
        self.rows: list[tuple[Segment, range]] = []
        self.uses = Uses()
        self.queue: list[tuple[int, int]] = []
        step, elements = 0, [[0]]
        for part in parts:
            modules = [module for kind, module in part.marks if kind in (ENTER, ENTER_BACKWARD)]
            entries = [
                (parameter, place) for place, module in enumerate(modules) for parameter in sorted(module.parameters)
            ]
            segment = Segment(step, len(modules), len(self.queue), len(entries))
            self.segments.append(segment)
            if part.modules is not None:
                self.rows.append((segment, part.layers))
            self.uses.add(part, segment, modules)
            of_block = [sum([sizes[parameter] for parameter in module.parameters]) for module in modules]
            elements.append(of_block * len(part.layers))
            for number in range(len(part.layers)):
                shift, first = number * part.shift, step + number * len(modules)
                self.queue += [(parameter + shift, first + place) for parameter, place in entries]
            step += len(modules) * len(part.layers)
        self.elements_before = list(accumulate(chain.from_iterable(elements)))


@lru_cache(maxsize=64)
def trace_of(parts: tuple[HookPart, ...], sizes: tuple[int, ...]) -> PartsTrace:
    """The trace of a pass, which all configurations of a model have in common."""
    return PartsTrace(parts, sizes)
