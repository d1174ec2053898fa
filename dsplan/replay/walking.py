"""Walking a run by an engine of our choice: today's, or one that follows an older release's rules."""

from __future__ import annotations

from collections.abc import Callable

from dsplan.engine import Engine, Run, engine_for, programs_for
from dsplan.engine.stage3 import Stage3
from dsplan.engine.stretches import compress
from dsplan.kernels import Kernels
from dsplan.ledger import PAGEABLE, PINNED, Ledger, StepMemory
from dsplan.model import ModelShape
from dsplan.plan import Plan
from dsplan.walk import Walk, WalkResult

Build = Callable[[Run], Engine]


class _Replay(Walk):
    """dsplan's walk with the engine, and the programs, of a run that DeepSpeed 0.19.8 would not make."""

    def __init__(self, run: Run, build: Build) -> None:
        super().__init__(run)
        self.engine = build(run)
        self.pieces = programs_for(run, run.kernels)
        if run.plan.ddp:
            self.adds_bias = run.model.bias
        cuts = (self.engine.follows_gradients, self.engine.follows_modules)
        self.embedding = compress(run.model, self.pieces.embedding, *cuts)
        self.block = compress(run.model, self.pieces.block, *cuts)
        self.head = compress(run.model, self.pieces.head, True, self.engine.follows_modules)


class _Today(Walk):
    """dsplan's walk with today's engine, in which ``build`` has changed something."""

    def __init__(self, run: Run, build: Build) -> None:
        super().__init__(run)
        self.engine = build(run)


def walk_as(model: ModelShape, plan: Plan, world_size: int, kernels: Kernels, build: Build = engine_for) -> WalkResult:
    """The walk of rank 0, which is what the published figures are of, by the engine that ``build`` makes."""
    run = _rank_0(model, plan, world_size, kernels)
    _Replay(run, build).take()
    return _found(run.ledger)


def walk_without_host_temporaries(model: ModelShape, plan: Plan, world_size: int, kernels: Kernels) -> WalkResult:
    """Stage 3 as :func:`dsplan.walk.walk` has it, without what today's step takes on the host in passing.

    Today the whole gradient partition is checked for overflow by two temporaries, and the updated parameters are cast
    on the host; with one sub-group, as the published runs had it, that is 5·P bytes a rank. What the releases of then
    made of both we have not established, so what was published is judged by what stays.
    """

    def build(run: Run) -> Engine:
        engine = engine_for(run)
        assert isinstance(engine, Stage3)
        engine.counts_host_temporaries = False
        return engine

    run = _rank_0(model, plan, world_size, kernels)
    _Today(run, build).take()
    return _found(run.ledger)


def _rank_0(model: ModelShape, plan: Plan, world_size: int, kernels: Kernels) -> Run:
    return Run(model=model, plan=plan, world_size=world_size, kernels=kernels, ledger=Ledger(kernels), rank=0)


def _found(ledger: Ledger) -> WalkResult:
    return WalkResult(
        steps=tuple(ledger.steps),
        pinned_bytes=ledger.host_peak[PINNED],
        pageable_bytes=ledger.host_peak[PAGEABLE],
        host_bytes=ledger.host_total_peak,
        terms=(),
    )


def highest_step(result: WalkResult) -> StepMemory:
    """The step with the highest peak, initialisation apart: those who published reset their peak after it."""
    return max(result.steps[1:], key=lambda step: step.peak_bytes)
