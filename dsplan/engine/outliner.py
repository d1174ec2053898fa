"""Outliner: the walk of a rank without the model's programs, of which an outline is made."""

from __future__ import annotations

from copy import copy
from dataclasses import replace

from dsplan.engine.base import Run
from dsplan.engine.outline import BLOCK, moment_of_block
from dsplan.engine.stretches import first_of_block
from dsplan.engine.tracing import TracingLedger
from dsplan.engine.training import Walk
from dsplan.engine.varied import AUTOGRADS_THREAD
from dsplan.tape import GRADIENT, PRODUCT


class Outliner(Walk):
    """A walk without the model's programs: the engine acts as in every walk, and the ledger notes what it does."""

    def __init__(self, run: Run, ledger: TracingLedger) -> None:
        super().__init__(run)
        self.tracing = ledger

    def of_rank(self, rank: int) -> Outliner:
        """The walk of another rank, which has begun as this one has; this one has not trained."""
        other, ledger = copy(self), self.tracing.fork()
        other.run, other.ledger, other.tracing = replace(self.run, ledger=ledger, rank=rank), ledger, ledger
        engine = self.engine.of_rank(other.run)
        if engine is None:  # all is trained where walks are outlined, so this run is the whole one
            return begun(self.run, rank, self.tracing.anew())
        other.engine = engine
        return other

    def _take_inputs(self) -> None:
        self.tracing.tokens(appear=True)

    def _drop_inputs(self) -> None:
        self.tracing.tokens(appear=False)

    def _blocks(self, direction: int, layers: range) -> None:
        calls = tuple([(kind, index) for _, _, kind, index in self._stretches(BLOCK, direction)])
        while layers:
            self.ledger.moment = moment_of_block(direction, layers[0])
            each = None
            if self.workspaces == AUTOGRADS_THREAD or not any(kind == PRODUCT for kind, _ in calls):
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
        effects = []
        self.tracing.settle()
        for _, _, kind, index in self._stretches(piece, direction):
            level = ledger.peak = ledger.level
            if kind == GRADIENT:
                engine.gradient(base + index if index >= 0 else ~index)
            elif kind == PRODUCT:
                self._workspace(AUTOGRADS_THREAD)
            elif kind > 0:
                engine.module(kind)
            effects.append((ledger.peak - level, ledger.level - level))
        self.tracing.piece(piece, direction, layer, tuple(effects))


def begun(run: Run, rank: int, ledger: TracingLedger) -> Outliner:
    """The walk of one rank, up to the end of the initialisation."""
    walk = Outliner(replace(run, rank=rank, ledger=ledger), ledger)
    walk.begin()
    return walk
