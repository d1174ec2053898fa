"""The trace of stage 3's submodules, from hooks that are told in parts: what alike blocks have is told once.

Of alike blocks everything in the trace is linear in the number of the block: where its submodules and their parameters
come, how much lies before them, and when a parameter is used next.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

from dsplan.engine.hook_parts import HookPart
from dsplan.tape import ENTER, ENTER_BACKWARD, LEAVE, LEAVE_BACKWARD

_ENTERING = (ENTER, ENTER_BACKWARD)


#: A number of each block: of the first one, and how much more of each one after it.
Linear = tuple[int, int]
#: Further away than any use of a parameter.
NEVER: Linear = (10**18, 0)


#: A parameter that is left, counted from the part's first; the entry of its next use in the queue; and the elements of
#: the submodules before that use, the one that is entered next being the first of them.
Next = tuple[int, Linear, Linear]


class Action(NamedTuple):
    """A hook as the rules see it.

    Attributes:
        enters: whether the submodule is entered.
        parameters, saved, name: as the hook has them.
        shared: of the parameters those that another submodule owns too.
        entries: of its block in the queue, up to this submodule and with it.
        saves: whether autograd has just saved something of it.
        forgets: whether autograd has no more use for what it had saved.
        next: of each parameter, where the submodule is left.
    """

    enters: bool
    parameters: tuple[int, ...]
    saved: tuple[int, ...]
    name: str
    shared: tuple[int, ...]
    entries: int
    saves: bool
    forgets: bool
    next: tuple[Next, ...]


#: A place in the trace: the step, the entry in the queue, and the elements before that step.
Place = tuple[int, int, int]


class Segment:
    """What a part is in the trace.

    Attributes:
        part: the part.
        first: where its first submodule comes.
        per_block: how much of each a block has.
        end: where the next part begins.
        actions: of one block, or all.
        order: the parameters of the first block in the order in which they are used.
        uses: of the first block, counted from it, the places at which each parameter is used.
        before: of the first block, counted from it, the elements before each submodule.
    """

    def __init__(self, part: HookPart, sizes: Sequence[int], first: Place) -> None:
        self.part, self.first = part, first
        self.actions: list[Action] = []
        self.order: list[int] = []
        self.uses: dict[int, list[Place]] = {}
        self.before = [0]
        base = part.base(0)
        for kind, _, parameters, _ in part.hooks:
            if kind in _ENTERING:
                step, elements = len(self.before) - 1, self.before[-1]
                for parameter in sorted(parameters):
                    self.uses.setdefault(parameter, []).append((step, len(self.order), elements))
                    self.order.append(parameter)
                self.before.append(elements + sum([sizes[base + parameter] for parameter in parameters]))
        self.per_block = (len(self.before) - 1, len(self.order), self.before[-1])
        steps, entries, elements = [
            begin + len(part.layers) * each for begin, each in zip(first, self.per_block, strict=True)
        ]
        self.end = steps, entries, elements

    def queue(self) -> list[int]:
        """The parameters in the order in which they are used."""
        part, count = self.part, len(self.part.layers)
        base, entries = part.base(0), len(self.order)
        if not part.shift:
            return [base + parameter for parameter in self.order]
        found = [0] * (entries * count)
        for place, parameter in enumerate(self.order):
            begin = base + parameter
            found[place::entries] = range(begin, begin + count * part.shift, part.shift)
        return found

    def number_of(self, part: HookPart) -> Linear | None:
        """The number here of each block of ``part``; None where they are others."""
        if part.stride != self.part.stride:
            return None
        ours, theirs = self.part.layers, part.layers
        return (theirs[0] - ours[0]) * ours.step, theirs.step * ours.step if part.stride else 0


class PartsTrace:
    """What :class:`dsplan.engine.coordinator.Coordinator` makes of the submodules in the order in which they come.

    Args:
        parts: the hooks of a pass.
        sizes: elements of every parameter.

    Attributes:
        segments: what each part is in it.
        queue: the parameter of every use, in order.
        open: parameters of the submodules that are entered in the backward pass and never left in it.
    """

    def __init__(self, parts: Sequence[HookPart], sizes: Sequence[int]) -> None:
        self.segments: list[Segment] = []
        self.queue: list[int] = []
        first = (0, 0, 0)
        for part in parts:
            segment = Segment(part, sizes, first)
            self.segments.append(segment)
            self.queue += segment.queue()
            first = segment.end
        once = [hook for part in parts if not part.stride for hook in part.hooks]
        owners = {(hook.name, parameter) for hook in once for parameter in hook.parameters}
        owned = [parameter for _, parameter in owners]
        self._shared = {parameter for parameter in owned if owned.count(parameter) > 1}
        left = {hook.name for hook in once if hook.kind == LEAVE_BACKWARD}
        stay = [hook for hook in once if hook.kind == ENTER_BACKWARD and hook.name not in left]
        self.open = tuple(dict.fromkeys([parameter for hook in stay for parameter in hook.parameters]))
        for number, segment in enumerate(self.segments):
            segment.actions = list(self._actions(segment, self.segments[number:]))

    def _actions(self, segment: Segment, onwards: Sequence[Segment]) -> Iterator[Action]:
        part, entries, step = segment.part, 0, 0
        for kind, name, parameters, saved in part.hooks:
            enters = kind in _ENTERING
            if enters:
                step, entries = step + 1, entries + len(parameters)
            shared = () if part.stride else tuple([each for each in parameters if each in self._shared])
            saves, forgets = kind == LEAVE and part.saves and bool(saved), kind == LEAVE_BACKWARD and bool(saved)
            later = () if enters else tuple([_next(each, step, onwards) for each in parameters])
            yield Action(enters, parameters, saved, name, shared, entries, saves, forgets, later)


def _next(parameter: int, step: int, onwards: Sequence[Segment]) -> Next:
    """The next use of a parameter that is left before submodule ``step`` of its block, the first of ``onwards``.

    What a step has taken of the queue for itself is not for a later one; but that very step counts as a next use.
    """
    here = onwards[0]
    now, per_block = here.first[2] + here.before[step], here.per_block[2] if here.part.stride else 0
    nearest = None
    for segment in onwards:
        number = segment.number_of(here.part)
        if number is None or parameter not in segment.uses:
            continue
        begin, apart = number
        _, entries, elements = segment.per_block
        for at, entry, before in segment.uses[parameter]:
            if segment is here and at < step:
                continue
            if nearest is None:
                nearest = segment.first[2] + begin * elements + before - now, apart * elements - per_block
            if segment is not here or at > step:
                return parameter, (segment.first[1] + begin * entries + entry, apart * entries), nearest
    return parameter, NEVER, nearest or NEVER


@lru_cache(maxsize=64)
def trace_of(parts: tuple[HookPart, ...], sizes: tuple[int, ...]) -> PartsTrace:
    """The trace of a pass, which all configurations of a model have in common."""
    return PartsTrace(parts, sizes)
