"""Walking a run by an engine of our choice: today's, or one that follows an older release's rules."""

from __future__ import annotations

from collections.abc import Callable

from dsplan.engine import Engine, Run, engine_for, programs_for
from dsplan.kernels import Kernels
from dsplan.ledger import PAGEABLE, PINNED, Ledger, StepMemory
from dsplan.model import ModelShape
from dsplan.plan import Plan
from dsplan.walk import WalkResult, _compress, _Walk

Build = Callable[[Run], Engine]


class _Replay(_Walk):
    """dsplan's walk with the engine, and the programs, of a run that DeepSpeed 0.19.8 would not make."""

    def __init__(self, run: Run, build: Build) -> None:
        super().__init__(run)
        self.engine = build(run)
        self.pieces = programs_for(run, run.kernels)
        if run.plan.ddp:
            self.adds_bias = run.model.bias
        cuts = (self.engine.follows_gradients, self.engine.follows_modules)
        self.embedding = _compress(run.model, self.pieces.embedding, *cuts)
        self.block = _compress(run.model, self.pieces.block, *cuts)
        self.head = _compress(run.model, self.pieces.head, True, self.engine.follows_modules)


def walk_as(model: ModelShape, plan: Plan, world_size: int, kernels: Kernels, build: Build = engine_for) -> WalkResult:
    """The walk of rank 0, which is what the published figures are of, by the engine that ``build`` makes."""
    ledger = Ledger(kernels)
    run = Run(model=model, plan=plan, world_size=world_size, kernels=kernels, ledger=ledger, rank=0)
    _Replay(run, build).take()
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
