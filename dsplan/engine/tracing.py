"""Tracing: the ledger by which a walk becomes an outline; the model's programs do not reach it."""

from __future__ import annotations

from dataclasses import dataclass

from dsplan.engine.outline import BLOCK, FORWARD, Blocks, Effects, Item, Outline, Phase, Piece, Room, Tokens
from dsplan.engine.stretches import Effect, Runs
from dsplan.kernels import Kernels
from dsplan.ledger import PAGEABLE, PINNED, Ledger, Term


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
                known = self._seen.get(id(each))
                found.append((layer, count, self.effects(each) if known is None else known[1]))
                layer += onwards * count
            seen = self._runs[key] = runs, self.blocks(direction, tuple(found))
        return seen[1]

    def phase(self, name: str, moment: str, items: tuple[Item, ...]) -> Phase:
        key = (name, moment, items)
        found = self._phases.get(key)
        if found is None:
            found = self._phases[key] = Phase(name, moment, items)
        return found


@dataclass(slots=True)
class TracedPhase:
    """A phase as it is traced; ``again`` is what it consists of in a later step."""

    name: str
    moment: str
    items: list[Item]
    again: list[Item]


class TracingLedger(Ledger):
    """A ledger on which only the engine allocates; the walk tells it where the pieces of the model run."""

    def __init__(self, kernels: Kernels, interned: Interned) -> None:
        super().__init__(kernels)
        self._interned = interned
        self._outline: list[tuple[str, list[TracedPhase]]] = []
        self._items: list[Item] = []
        self._again: list[Item] = []
        self._is_once = False  # what appears now is not to come again
        #: Whether :meth:`pass_again` can tell what comes again.
        self.repeats = True
        self._direction = FORWARD
        self._runs: list[tuple[int, int, Effects]] = []
        self._start = 0
        self._init_bytes = 0
        self._rooms: dict[tuple[int, int, int], int] = {}  # by step, phase and items before (:class:`Room`)

    def anew(self) -> TracingLedger:
        """An empty one, of another rank of the same plan."""
        return TracingLedger(self.kernels, self._interned)

    def fork(self) -> TracingLedger:
        """Another one that goes on from here, in the same phase."""
        other = object.__new__(TracingLedger)
        vars(other).update(vars(self))
        other._items, other._again, other._runs = list(self._items), list(self._again), list(self._runs)
        other.host_level, other.host_peak = dict(self.host_level), dict(self.host_peak)
        other._pinned_free = self._pinned_free.copy()
        other._outline = [(name, list(phases)) for name, phases in self._outline]
        phases = other._outline[-1][1]
        phases[-1] = TracedPhase(phases[-1].name, phases[-1].moment, other._items, other._again)
        other._rooms = dict(self._rooms)
        return other

    # Steps and phases are told by the outline alone.

    def begin_step(self, name: str) -> None:
        self._outline.append((name, []))

    def begin(self, phase: str) -> None:
        self._start = self.peak = self.level
        self._peak_moment = self.moment
        self._items, self._again = [], []
        self._outline[-1][1].append(TracedPhase(phase, self.moment, self._items, self._again))

    def end(self) -> None:
        if len(self._outline) == 1:  # the initialisation, in which no piece runs
            self._init_bytes = self.peak
        self._settle()
        self._close()

    def pass_again(self) -> None:
        """The phases of the step before come again, but for the last, in which the optimizer updates."""
        *passes, update = self._outline[-2][1]
        moment = self.moment  # what this step begins with is another than the one before
        for each in passes:
            self._outline[-1][1].append(TracedPhase(each.name, moment or each.moment, each.again, each.again))
            moment = ""
        self.moment = update.moment

    def once(self, term: Term, size: int) -> None:
        """A tensor appears that stays to the end, between two pieces or within one."""
        self._is_once = True
        self.alloc(term, size)

    def tokens(self, *, appear: bool) -> None:
        """The inputs of a micro batch appear or go."""
        self._settle()
        tokens = Tokens(appear, self.moment)
        self._add(tokens, tokens)

    def piece(self, name: str, direction: int, layer: int, each: tuple[Effect, ...], again: tuple[Effect, ...]) -> None:
        """A piece has run, with what the engine did after each of its stretches, and what it does in a later step."""
        if name == BLOCK:
            self.repeats = self.repeats and each == again
            self.block(direction, layer, each)
        else:
            item = Piece(name, direction, self._interned.effects(each), self.moment)
            later = item if each == again else item._replace(effects=self._interned.effects(again))
            self._add(item, later)
        self._start = self.peak = self.level  # what the engine did within the piece is in its effects
        self._is_once = False

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
        blocks = self._interned.blocks_of(direction, first, runs)
        self._add(blocks, blocks)

    def room(self, wanted: int) -> int:
        """As every ledger's in the initialisation. Later, and between the pieces, it is taken that there is as much as
        is wanted, and noted unless it is so with every batch."""
        if len(self._outline) == 1:
            return self.peak - self.level
        lift = self.level - self._start + wanted
        if lift > self.peak - self._start:
            phases = self._outline[-1][1]
            place = len(self._outline) - 1, len(phases) - 1, len(self._items) + bool(self._runs)
            self._rooms[place] = max(lift, self._rooms.get(place, 0))
        return wanted

    def settle(self) -> None:
        """A piece begins: what the engine has done until here is a part of its own."""
        self._settle()

    def outline(self) -> Outline:
        """The walk so far."""
        return Outline(
            steps=tuple(
                (name, tuple([self._interned.phase(each.name, each.moment, tuple(each.items)) for each in phases]))
                for name, phases in self._outline
            ),
            pinned_bytes=self.host_peak[PINNED],
            pageable_bytes=self.host_peak[PAGEABLE],
            host_bytes=self.host_total_peak,
            init_bytes=self._init_bytes,
            rooms=tuple([self._room(*place, lift) for place, lift in self._rooms.items()]),
        )

    def _room(self, step: int, phase: int, items: int, lift: int) -> Room:
        one = self._outline[step][1][phase]
        return Room(step, phase, self._interned.phase(one.name, one.moment, tuple(one.items[:items])), lift)

    def _settle(self) -> None:
        rise, net = self.peak - self._start, self.level - self._start
        if rise or net:
            item = rise, net, self._peak_moment
            self._add(item, None if self._is_once else item)
        self._start = self.peak = self.level
        self._is_once = False

    def _add(self, item: Item, again: Item | None) -> None:
        self._close()
        self._items.append(item)
        if again is not None:
            self._again.append(again)

    def _close(self) -> None:
        if self._runs:
            blocks = self._interned.blocks(self._direction, tuple(self._runs))
            self._items.append(blocks)
            self._again.append(blocks)
            self._runs = []
