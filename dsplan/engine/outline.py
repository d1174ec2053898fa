"""Outline: the walk of one rank with the batch taken out.

What an engine allocates depends on the model, the configuration and the ranks; of a walk only the model's programs
depend on the batch. An outline is what the engine does between their stretches, as it was walked once. With the
stretches of a batch it makes the same levels and peaks as a walk. Blocks at which the engine does the same are kept
once, and what they come to is computed once for a batch.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import lru_cache
from operator import attrgetter
from typing import NamedTuple

from dsplan.activations import Programs
from dsplan.engine.base import Run
from dsplan.engine.stretches import Effect, Same, Stretch, compress
from dsplan.kernels import Kernels
from dsplan.ledger import PhaseMemory, StepMemory
from dsplan.model import ModelShape
from dsplan.plan import Plan
from dsplan.workload import Workload

FORWARD, BACKWARD = 0, 1
#: (rise over the start or peak, net change or level, moment of the highest) in device bytes.
Height = tuple[int, int, str]
EMBEDDING, BLOCK, HEAD = "embedding", "block", "head"


class Effects:
    """What the engine does after each stretch of one piece; the same object where it does the same."""

    __slots__ = ("each",)

    def __init__(self, each: tuple[Effect, ...]) -> None:
        self.each = each


@dataclass(frozen=True, slots=True, eq=False)
class Cut:
    """The pieces of a model as stretches, by name and direction; ``calls`` are the engine's after each of them."""

    pieces: dict[tuple[str, int], tuple[Stretch, ...]]
    calls: tuple[tuple[int, int], ...]


def cut_programs(model: ModelShape, programs: Programs, gradients: bool, modules: bool) -> Cut:
    """The pieces cut where an engine follows ``gradients`` and ``modules``; the head always at its gradients.

    They come first: with them ZeRO's buckets appear, whatever the blocks need.
    """
    return _cut(model, Same(programs), gradients, modules)


@lru_cache(maxsize=1024)
def _cut(model: ModelShape, same: Same[Programs], gradients: bool, modules: bool) -> Cut:
    pieces = {}
    for name, follows in ((EMBEDDING, gradients), (BLOCK, gradients), (HEAD, True)):
        stretches = compress(model, getattr(same.thing, name), follows, modules)
        pieces[name, FORWARD], pieces[name, BACKWARD] = stretches
    return Cut(pieces, tuple([(kind, index) for piece in pieces.values() for _, _, kind, index in piece]))


class WithoutBatch:
    """A run as the key of a cache: equal where all is but the plan's name, micro batch and sequence.

    Ledger, rank and capacity are left out too.
    """

    __slots__ = ("run", "same")

    def __init__(self, run: Run) -> None:
        self.run = run
        plan = run.plan
        self.same = (run.model, run.world_size, run.kernels, _OF_PLAN(plan), _OF_WORKLOAD(plan.workload))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, WithoutBatch) and other.same == self.same

    def __hash__(self) -> int:
        return hash(self.same)


_OF_PLAN = attrgetter(*(each.name for each in fields(Plan) if each.name not in ("name", "workload")))
_BATCH = ("micro_batch_size", "sequence_length")
_OF_WORKLOAD = attrgetter(*(each.name for each in fields(Workload) if each.name not in _BATCH))


class Batch:
    """What a micro batch takes: the stretches of each piece, and its tokens; and what has been made of them so far."""

    def __init__(self, cut: Cut, tokens_bytes: int, kernels: Kernels) -> None:
        self.pieces = cut.pieces
        #: The inputs, two tensors.
        self.tokens_bytes = 2 * kernels.rounded(tokens_bytes)
        self._settled: dict[tuple[str, int, Effects], Effect] = {}
        self.of_blocks: dict[Blocks, Height] = {}
        self.of_phases: dict[Phase, Height] = {}

    def settled(self, piece: str, direction: int, effects: Effects) -> Effect:
        """(rise, net) of a piece with what the engine does in it."""
        found = self._settled.get((piece, direction, effects))
        if found is None:
            level = highest = 0
            for (rise, net, _, _), (risen, left) in zip(self.pieces[piece, direction], effects.each, strict=True):
                if level + rise > highest:  # noqa: PLR1730  # nothing is done so often
                    highest = level + rise
                level += net
                if level + risen > highest:  # noqa: PLR1730
                    highest = level + risen
                level += left
            found = self._settled[piece, direction, effects] = highest, level
        return found


def tokens_bytes(workload: Workload) -> int:
    """Bytes of the tokens of a micro batch, and of its targets."""
    return 8 * workload.micro_batch_size * workload.sequence_length


class Tokens(NamedTuple):
    """The inputs of a micro batch appear or go."""

    appear: bool
    moment: str

    def of(self, batch: Batch) -> Height:
        size = batch.tokens_bytes
        return (size, size, self.moment) if self.appear else (0, -size, self.moment)


class Piece(NamedTuple):
    """The embedding or the head."""

    name: str
    direction: int
    effects: Effects
    moment: str

    def of(self, batch: Batch) -> Height:
        return (*batch.settled(self.name, self.direction, self.effects), self.moment)


@dataclass(slots=True, eq=False)
class Blocks:
    """Blocks one after the other: runs of alike ones as (first layer, how many, what the engine does in each)."""

    direction: int
    runs: tuple[tuple[int, int, Effects], ...]

    def of(self, batch: Batch) -> Height:
        found = batch.of_blocks.get(self)
        if found is None:
            found = batch.of_blocks[self] = self._settled(batch)
        return found

    def _settled(self, batch: Batch) -> Height:
        """The moment is the layer in which the blocks are highest first."""
        level = highest = layer = 0
        onwards = 1 if self.direction == FORWARD else -1
        settled: dict[Effects, Effect] = {}
        for first, count, effects in self.runs:
            found = settled.get(effects)
            if found is None:
                found = settled[effects] = batch.settled(BLOCK, self.direction, effects)
            rise, net = found
            later = count - 1 if net > 0 else 0  # of alike blocks the last or the first is the highest
            if level + later * net + rise > highest:
                highest = level + later * net + rise
                layer = first + onwards * later
            level += count * net
        return highest, level, moment_of_block(self.direction, layer)


def moment_of_block(direction: int, layer: int) -> str:
    """What the walk calls the pass of a block."""
    return f"{'forward' if direction == FORWARD else 'backward'} of block {layer}"


#: One part of a phase. What the engine does between the pieces is the same with every batch; of the others ``of`` says
#: how far the level rises over where it was, what it changes by, and the moment at which it is highest.
Item = Height | Tokens | Piece | Blocks


@dataclass(slots=True, eq=False)
class Phase:
    """A phase of a step, or of one of its micro batches; ``moment`` is that at which it begins."""

    name: str
    moment: str
    items: tuple[Item, ...]

    def settled(self, batch: Batch) -> Height:
        """The moment is the first at which it is highest."""
        level = highest = 0
        moment = self.moment
        for item in self.items:
            rise, net, at = item.of(batch) if isinstance(item, (Tokens, Piece, Blocks)) else item
            if level + rise > highest:
                highest, moment = level + rise, at
            level += net
        found = batch.of_phases[self] = highest, level, moment
        return found


class Room(NamedTuple):
    """Where an engine's choice depends on how far the level is below the highest so far, and so on the batch.

    Attributes:
        step, phase: their places in the outline.
        before: what of the phase is before that.
        lift: how far the highest so far has to be over the level at the end of ``before``, in bytes, for the outline
            to hold.
    """

    step: int
    phase: int
    before: Phase
    lift: int


@dataclass(slots=True, kw_only=True)
class Outline:
    """The outline of one rank.

    Attributes:
        steps: of the initialisation and each step its name and its phases in order.
        pinned_bytes, pageable_bytes, host_bytes: peaks on the host, which no batch changes.
        init_bytes: the peak of the initialisation.
        rooms: what has to hold of a batch for it to have this outline.
    """

    steps: tuple[tuple[str, tuple[Phase, ...]], ...]
    pinned_bytes: int
    pageable_bytes: int
    host_bytes: int
    init_bytes: int
    rooms: tuple[Room, ...] = ()

    def holds(self, batch: Batch) -> bool:
        """Whether there is the room with ``batch`` that was taken to be there."""
        return not self.rooms or all(self._leaves(room, batch) for room in self.rooms)

    def _leaves(self, room: Room, batch: Batch) -> bool:
        level = highest = 0
        phases = [phase for _, phases in self.steps[: room.step] for phase in phases]
        for phase in (*phases, *self.steps[room.step][1][: room.phase], room.before):
            rise, net, _ = batch.of_phases.get(phase) or phase.settled(batch)
            highest = max(highest, level + rise)
            level += net
        return highest - level >= room.lift

    def walk(self, batch: Batch) -> list[dict[str, Height]]:
        """Of every step and phase the level at its end, its peak and the moment of it, with ``batch``.

        As :meth:`dsplan.ledger.Ledger.end` keeps them.
        """
        steps, level, of_phases = [], 0, batch.of_phases
        for _, phases in self.steps:
            step: dict[str, Height] = {}
            for phase in phases:
                rise, net, moment = of_phases.get(phase) or phase.settled(batch)
                peak = level + rise
                level += net
                earlier = step.get(phase.name)
                if earlier is not None and earlier[1] > peak:
                    _, peak, moment = earlier
                step[phase.name] = level, peak, moment
            steps.append(step)
        return steps


@dataclass(slots=True, kw_only=True)
class Outlines:
    """The outlines of some ranks of a plan, and which programs they are for.

    Attributes:
        cuts: whether the engine follows gradients, and modules.
        calls: the engine's calls in the programs, in their order.
        kernels: those of the programs.
    """

    ranks: tuple[Outline, ...]
    cuts: tuple[bool, bool]
    calls: tuple[tuple[int, int], ...]
    kernels: Kernels

    def holds(self, batch: Batch) -> bool:
        """Whether these are the outlines with ``batch``."""
        return all(one.holds(batch) for one in self.ranks)

    def walk(self, batch: Batch) -> tuple[StepMemory, ...]:
        """The levels and peaks of every phase with ``batch``, of the worst rank in each."""
        first, *others = [rank.walk(batch) for rank in self.ranks]
        for steps in others:
            for step, other in zip(first, steps, strict=True):
                for phase, (level, peak, moment) in other.items():
                    before = step[phase]
                    if peak > before[1]:
                        step[phase] = max(level, before[0]), peak, moment
                    elif level > before[0]:
                        step[phase] = level, before[1], before[2]
        return tuple(
            [
                StepMemory(
                    name=name,
                    phases={
                        phase: PhaseMemory(level_bytes=level, peak_bytes=peak, peak_moment=moment)
                        for phase, (level, peak, moment) in step.items()
                    },
                )
                for (name, _), step in zip(self.ranks[0].steps, first, strict=True)
            ]
        )

    @property
    def init_bytes(self) -> int:
        """The highest peak of the initialisation."""
        return max(one.init_bytes for one in self.ranks)
