"""Tracing: the ledger by which a walk becomes an outline; the model's programs do not reach it."""

from __future__ import annotations

from copy import copy

from dsplan.engine.outline import BLOCK, FORWARD, Blocks, Effects, Fixed, Item, Outline, Phase, Piece, Tokens
from dsplan.engine.stretches import Effect, Runs
from dsplan.kernels import Kernels
from dsplan.ledger import PAGEABLE, PINNED, Ledger


class Interned:
    """What several ranks and steps of a plan have in common, kept once."""

    def __init__(self) -> None:
        self._effects: dict[tuple[Effect, ...], Effects] = {}
        self._phases: dict[tuple[str, str, tuple[Item, ...]], Phase] = {}
        self._runs: dict[tuple[int, int, int], tuple[Runs, Blocks]] = {}
        self._seen: dict[int, tuple[tuple[Effect, ...], Effects]] = {}
        self._blocks: dict[tuple[int, tuple[tuple[int, int, Effects], ...]], Blocks] = {}

    def effects(self, each: tuple[Effect, ...]) -> Effects:
        seen = self._seen.get(id(each))  # the same object again, as blocks have it, is not compared
        if seen is not None:
            return seen[1]
        found = self._effects.get(each)
        if found is None:
            found = self._effects[each] = Effects(each)
        self._seen[id(each)] = each, found
        return found

    def blocks(self, direction: int, runs: tuple[tuple[int, int, Effects], ...]) -> Blocks:
        found = self._blocks.get((direction, runs))
        if found is None:
            found = self._blocks[direction, runs] = Blocks(direction, runs)
        return found

    def blocks_of(self, direction: int, first: int, runs: Runs) -> Blocks:
        """Those of ``runs``; the same object again is not gone through again."""
        key = (direction, first, id(runs))
        seen = self._runs.get(key)
        if seen is None:
            found, layer = [], first
            onwards = 1 if direction == FORWARD else -1
            for count, each in runs:
                found.append((layer, count, self.effects(each)))
                layer += onwards * count
            seen = self._runs[key] = runs, self.blocks(direction, tuple(found))
        return seen[1]

    def phase(self, name: str, moment: str, items: tuple[Item, ...]) -> Phase:
        key = (name, moment, items)
        found = self._phases.get(key)
        if found is None:
            found = self._phases[key] = Phase(name, moment, items)
        return found


class TracingLedger(Ledger):
    """A ledger on which only the engine allocates; the walk tells it where the pieces of the model run."""

    def __init__(self, kernels: Kernels, interned: Interned) -> None:
        super().__init__(kernels)
        self._interned = interned
        self._outline: list[tuple[str, list[tuple[str, str, list[Item]]]]] = []
        self._items: list[Item] = []
        self._direction = FORWARD
        self._runs: list[tuple[int, int, Effects]] = []
        self._start = 0
        self._init_bytes = 0

    def anew(self) -> TracingLedger:
        """An empty one, of another rank of the same plan."""
        return TracingLedger(self.kernels, self._interned)

    def fork(self) -> TracingLedger:
        """Another one that goes on from here, where no phase is open."""
        other = copy(self)
        other.steps, other._items, other._runs = list(self.steps), [], []
        other.host_level, other.host_peak = dict(self.host_level), dict(self.host_peak)
        other._pinned_free = self._pinned_free.copy()
        other._outline = [(name, list(phases)) for name, phases in self._outline]
        return other

    def begin_step(self, name: str) -> None:
        super().begin_step(name)
        self._outline.append((name, []))

    def begin(self, phase: str) -> None:
        super().begin(phase)
        self._start = self.level
        self._items = []
        self._outline[-1][1].append((phase, self.moment, self._items))

    def end(self) -> None:
        if len(self.steps) == 1:  # the initialisation, in which no piece runs
            self._init_bytes = self.peak
        self._settle()
        self._close()
        super().end()

    def tokens(self, *, appear: bool) -> None:
        """The inputs of a micro batch appear or go."""
        self._settle()
        self._add(Tokens(appear, self.moment))

    def piece(self, name: str, direction: int, layer: int, each: tuple[Effect, ...]) -> None:
        """A piece has run, with what the engine did after each of its stretches."""
        if name == BLOCK:
            self.block(direction, layer, each)
        else:
            self._add(Piece(name, direction, self._interned.effects(each), self.moment))
        self._start = self.peak = self.level  # what the engine did within the piece is in its effects

    def block(self, direction: int, layer: int, each: tuple[Effect, ...]) -> None:
        """One block has run; alike ones after each other are kept as one run."""
        if self._runs and self._direction != direction:
            self._close()
        self._direction = direction
        effects = self._interned.effects(each)
        if self._runs and self._runs[-1][2] is effects:
            first, count, _ = self._runs[-1]
            self._runs[-1] = first, count + 1, effects
        else:
            self._runs.append((layer, 1, effects))

    def blocks(self, direction: int, first: int, runs: Runs) -> None:
        """Several blocks have run, from layer ``first`` on in their order."""
        self._settle()
        self._add(self._interned.blocks_of(direction, first, runs))

    def settle(self) -> None:
        """A piece begins: what the engine has done until here is a part of its own."""
        self._settle()

    def outline(self) -> Outline:
        """The walk so far."""
        return Outline(
            steps=tuple(
                (name, tuple(self._interned.phase(phase, moment, tuple(items)) for phase, moment, items in phases))
                for name, phases in self._outline
            ),
            pinned_bytes=self.host_peak[PINNED],
            pageable_bytes=self.host_peak[PAGEABLE],
            host_bytes=self.host_total_peak,
            init_bytes=self._init_bytes,
        )

    def _settle(self) -> None:
        rise, net = self.peak - self._start, self.level - self._start
        if rise or net:
            self._add(Fixed(rise, net, self._peak_moment))
        self._start = self.peak = self.level

    def _add(self, item: Item) -> None:
        self._close()
        self._items.append(item)

    def _close(self) -> None:
        if self._runs:
            self._items.append(self._interned.blocks(self._direction, tuple(self._runs)))
            self._runs = []
