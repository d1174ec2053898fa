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
from typing import Protocol

from dsplan.activations import INPUTS, Programs
from dsplan.engine.base import Run
from dsplan.engine.stretches import Effect, Same, Stretch, compress
from dsplan.kernels import Kernels
from dsplan.ledger import Ledger, PhaseMemory, StepMemory
from dsplan.model import ModelShape
from dsplan.plan import Plan
from dsplan.workload import Workload

FORWARD, BACKWARD = 0, 1
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
    """The pieces cut where an engine follows ``gradients`` and ``modules``; the head always at its gradients."""
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
        self.ledger = Ledger(kernels)
        self.tokens_bytes = tokens_bytes
        self._settled: dict[tuple[str, int, Effects], Effect] = {}
        self.of_blocks: dict[Blocks, tuple[int, int, int]] = {}
        self.of_phases: dict[Phase, tuple[int, int, str]] = {}

    def settled(self, piece: str, direction: int, effects: Effects) -> Effect:
        """(rise, net) of a piece with what the engine does in it."""
        found = self._settled.get((piece, direction, effects))
        if found is None:
            level = highest = 0
            for (rise, net, _, _), (risen, left) in zip(self.pieces[piece, direction], effects.each, strict=True):
                highest = max(highest, level + rise, level + net + risen)
                level += net + left
            found = self._settled[piece, direction, effects] = highest, level
        return found


class Item(Protocol):
    """One part of a phase."""

    def apply(self, ledger: Ledger, batch: Batch) -> None:
        """Move the ledger's level, and its peak with the moment of it."""


@dataclass(frozen=True, slots=True)
class Fixed:
    """What the engine does between the pieces."""

    rise: int
    net: int
    moment: str

    def apply(self, ledger: Ledger, batch: Batch) -> None:  # noqa: ARG002
        if ledger.level + self.rise > ledger.peak:
            ledger.moment = self.moment
            ledger.reach(ledger.level + self.rise)
        ledger.level += self.net


@dataclass(frozen=True, slots=True)
class Tokens:
    """The inputs of a micro batch, two tensors, appear or go."""

    appear: bool
    moment: str

    def apply(self, ledger: Ledger, batch: Batch) -> None:
        ledger.moment = self.moment
        for _ in range(2):
            if self.appear:
                ledger.alloc(INPUTS, batch.tokens_bytes)
            else:
                ledger.free(INPUTS, batch.tokens_bytes)


@dataclass(frozen=True, slots=True)
class Piece:
    """The embedding or the head."""

    name: str
    direction: int
    effects: Effects
    moment: str

    def apply(self, ledger: Ledger, batch: Batch) -> None:
        rise, net = batch.settled(self.name, self.direction, self.effects)
        if ledger.level + rise > ledger.peak:
            ledger.moment = self.moment
            ledger.reach(ledger.level + rise)
        ledger.level += net


@dataclass(frozen=True, slots=True, eq=False)
class Blocks:
    """Blocks one after the other: runs of alike ones as (first layer, how many, what the engine does in each)."""

    direction: int
    runs: tuple[tuple[int, int, Effects], ...]

    def apply(self, ledger: Ledger, batch: Batch) -> None:
        found = batch.of_blocks.get(self)
        if found is None:
            found = batch.of_blocks[self] = self._settled(batch)
        rise, net, layer = found
        if ledger.level + rise > ledger.peak:
            ledger.moment = moment_of_block(self.direction, layer)
            ledger.reach(ledger.level + rise)
        ledger.level += net

    def _settled(self, batch: Batch) -> tuple[int, int, int]:
        """Rise, net, and the layer in which the blocks are highest first."""
        level = highest = layer = 0
        onwards = 1 if self.direction == FORWARD else -1
        for first, count, effects in self.runs:
            rise, net = batch.settled(BLOCK, self.direction, effects)
            later = count - 1 if net > 0 else 0  # of alike blocks the last or the first is the highest
            if level + later * net + rise > highest:
                highest = level + later * net + rise
                layer = first + onwards * later
            level += count * net
        return highest, level, layer


def moment_of_block(direction: int, layer: int) -> str:
    """What the walk calls the pass of a block."""
    return f"{'forward' if direction == FORWARD else 'backward'} of block {layer}"


@dataclass(frozen=True, slots=True, eq=False)
class Phase:
    """A phase of a step, or of one of its micro batches; ``moment`` is that at which it begins."""

    name: str
    moment: str
    items: tuple[Item, ...]

    def settled(self, batch: Batch) -> tuple[int, int, str]:
        """Rise, net, and the moment at which it is highest first."""
        ledger = batch.ledger
        ledger.level = ledger.peak = 0
        ledger.moment = self.moment
        ledger.reach(0)
        for item in self.items:
            item.apply(ledger, batch)
        found = batch.of_phases[self] = ledger.peak, ledger.level, ledger.peak_moment
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Outline:
    """The outline of one rank.

    Attributes:
        steps: of the initialisation and each step its name and its phases in order.
        pinned_bytes, pageable_bytes, host_bytes: peaks on the host, which no batch changes.
        init_bytes: the peak of the initialisation.
    """

    steps: tuple[tuple[str, tuple[Phase, ...]], ...]
    pinned_bytes: int
    pageable_bytes: int
    host_bytes: int
    init_bytes: int

    def walk(self, batch: Batch) -> tuple[StepMemory, ...]:
        """The levels and peaks of every phase with ``batch``, as :meth:`dsplan.ledger.Ledger.end` keeps them."""
        steps, level, of_phases = [], 0, batch.of_phases
        for name, phases in self.steps:
            step = StepMemory(name=name)
            for phase in phases:
                rise, net, moment = of_phases.get(phase) or phase.settled(batch)
                peak = level + rise
                level += net
                memory = step.phases.get(phase.name)
                if memory is None:
                    step.phases[phase.name] = PhaseMemory(level_bytes=level, peak_bytes=peak, peak_moment=moment)
                    continue
                memory.level_bytes = level
                if peak >= memory.peak_bytes:
                    memory.peak_bytes, memory.peak_moment = peak, moment
            steps.append(step)
        return tuple(steps)


@dataclass(frozen=True, slots=True, kw_only=True)
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

    @property
    def init_bytes(self) -> int:
        """The highest peak of the initialisation."""
        return max(one.init_bytes for one in self.ranks)
