"""Outliner: the walk of a rank without the model's programs, of which an outline is made."""

from __future__ import annotations

from dsplan.engine.base import Run
from dsplan.engine.outline import BACKWARD, BLOCK, FORWARD, HEAD, moment_of_block
from dsplan.engine.outweighed import outweighs
from dsplan.engine.stretches import NOTHING, Stretch, first_of_block
from dsplan.engine.tracing import TracingLedger
from dsplan.engine.training import STEADY_STATE, Walk
from dsplan.engine.varied import AUTOGRADS_THREAD
from dsplan.ledger import Term
from dsplan.tape import GRADIENT, PRODUCT

#: Steps of an engine that is steady after the first one.
FIRST_AND_STEADY = 2


class Outliner(Walk):
    """A walk without the model's programs: the engine acts as in every walk, and the ledger notes what it does."""

    def __init__(self, run: Run, ledger: TracingLedger) -> None:
        super().__init__(run)
        self.tracing = ledger
        self._is_ahead = False  # of what is left to be walked, by a backward pass
        #: Of a block forward and backward: what comes after each of its stretches, and whether a product does.
        self.calls = [self._calls(direction) for direction in (FORWARD, BACKWARD)]

    def _calls(self, direction: int) -> tuple[tuple[tuple[int, int], ...], bool]:
        calls = tuple([(kind, index) for _, _, kind, index in self._stretches(BLOCK, direction)])
        return calls, PRODUCT in [kind for kind, _ in calls]

    def begin(self) -> None:
        """As every walk does, and the first backward pass where all ranks do the same in it."""
        super().begin()
        if self.engine.alike_in_backward:
            super()._backward()
            self._is_ahead = True

    def _backward(self) -> None:
        if not self._is_ahead:
            super()._backward()
        self._is_ahead = False

    def of_rank(self, rank: int) -> Outliner:
        """The walk of another rank, which has begun as this one has; this one has not trained."""
        ledger = self.tracing.fork()
        run = self.run.of_rank(rank, ledger)
        engine = self.engine.of_rank(run)
        if engine is None:  # all is trained where walks are outlined, so this run is the whole one
            return begun(self.run, rank, self.tracing.anew())
        other = object.__new__(Outliner)
        vars(other).update(vars(self))
        other.run, other.engine, other.ledger, other.tracing = run, engine, ledger, ledger
        return other

    def outweighs(self, other: Outliner) -> bool:
        """Whether no phase can be worst on the other rank, since it is no higher there than here at any moment."""
        gradients = [~index for _, _, kind, index in self._stretches(HEAD, BACKWARD) if kind == GRADIENT]
        return bool(gradients) and outweighs(self.engine, other.engine, gradients[0])

    def train(self) -> None:
        """As every walk does; where the second step's passes are the first one's again, they are not walked."""
        if self.engine.num_steps != FIRST_AND_STEADY:
            super().train()
            return
        self._passes()
        passed = self.engine.copy()
        self._update(first=True)
        self.ledger.begin_step(STEADY_STATE)
        if self.engine.begins_again() and self.tracing.repeats:
            self.engine = passed
            self.tracing.pass_again()
        else:
            self._begin_micro_batch(0)
            self._passes()
        self._update(first=False)

    def _once(self, term: Term, size: int) -> None:
        self.tracing.once(term, size)

    def _take_inputs(self) -> None:
        self.tracing.tokens(appear=True)

    def _drop_inputs(self) -> None:
        self.tracing.tokens(appear=False)

    def _stretches(self, piece: str, direction: int) -> tuple[Stretch, ...]:
        return self.cut.pieces[piece, direction]

    def _blocks(self, direction: int, layers: range) -> None:
        calls, multiply = self.calls[direction]
        while layers:
            self.ledger.moment = moment_of_block(direction, layers[0])
            each = None
            if self.workspaces == AUTOGRADS_THREAD or not multiply:
                each = self.engine.blocks_at_once(layers, calls)
            if each is not None:
                self.tracing.blocks(direction, layers[0], each)
                self.ledger.moment = moment_of_block(direction, layers[-1])
                return
            self._replay(BLOCK, direction, layers[0])
            layers = layers[1:]

    def _replay(self, piece: str, direction: int, layer: int) -> None:
        ledger, engine = self.ledger, self.engine
        base = first_of_block(self.run.model, layer)
        effects, again = [], []
        self.tracing.settle()
        for _, _, kind, index in self._stretches(piece, direction):
            level = ledger.peak = ledger.level
            if kind == GRADIENT:
                engine.gradient(base + index if index >= 0 else ~index)
            elif kind == PRODUCT:
                self._workspace(AUTOGRADS_THREAD)
            elif kind > 0:
                engine.module(kind)
            effect = ledger.peak - level, ledger.level - level
            effects.append(effect)
            again.append(NOTHING if kind == PRODUCT else effect)
        self.tracing.piece(piece, direction, layer, tuple(effects), tuple(again))


def begun(run: Run, rank: int, ledger: TracingLedger) -> Outliner:
    """The walk of one rank, up to where it does something of its own."""
    walk = Outliner(run.of_rank(rank, ledger), ledger)
    walk.begin()
    return walk
