"""Varied: what a walk does of a decoder whose layers differ, or of which not every parameter is trained.

What the engines do depends on the parameters that are trained alone: theirs is a model of those
(:mod:`dsplan.engine.trained`). The others are built, cast and moved with these, stay as they are, and get no gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

from dsplan.activations import Program, block_programs, layers_vary
from dsplan.engine.base import Engine, Run
from dsplan.engine.gathering import acts
from dsplan.engine.stretches import Same, named_stretches
from dsplan.engine.trained import all_trained, trained_part
from dsplan.kernels import Kernels
from dsplan.ledger import Term
from dsplan.model import ModelShape
from dsplan.plan import Plan
from dsplan.tape import ALLOC, GRADIENT, PRODUCT

#: The stage whose engine knows all parameters, trained or not: it partitions and gathers them.
STAGE_OF_ALL = 3
#: Threads that multiply once the backward pass has begun: the program's and autograd's.
AUTOGRADS_THREAD = 2
#: (rise, net, kind, name): a stretch of device events, then what comes there.
NamedStretch = tuple[int, int, int, str]


class Varied:
    """The programs of each layer, and the parameters that are not trained."""

    def __init__(self, model: ModelShape, plan: Plan, engine: Engine, kernels: Kernels) -> None:
        self.model = model
        self.engine = engine
        self.blocks = block_programs(model, plan.workload, kernels)
        self.indices = {parameter.name: index for index, parameter in enumerate(engine.run.model.parameters)}
        self.some_frozen = not all_trained(model)

    def of_layer(self, layer: int) -> tuple[Program, str]:
        """The program of a layer's block, and what comes before the names of its parameters."""
        return self.blocks[layer], f"{self.model.block_prefix}{layer}."

    def replay(
        self, program: Program, prefix: str, workspaces: Callable[[int], None], *, backward: bool, cut: bool
    ) -> None:
        """Replay a pass of a piece.

        Args:
            program: of an end of the model; a block's comes from :meth:`of_layer`.
            prefix: what comes before the names in it.
            workspaces: sees to it that so many threads have multiplied.
            backward: whether it is the backward pass.
            cut: whether the engine has to know of every gradient, whatever it asks for.
        """
        ledger, engine = self.engine.ledger, self.engine
        if ledger.detailed:
            for kind, size, what in program.backward if backward else program.forward:
                if isinstance(what, Term):
                    if kind == ALLOC:  # the size as it is, or its own minus: both may know their storage
                        ledger.event(what, size, 1)
                    else:
                        ledger.event(what, -size, -1)
                elif kind in (GRADIENT, PRODUCT) or acts(self.model, kind, what):
                    self._call(kind, what, prefix, workspaces)
            return
        gradients = engine.follows_gradients or cut or self.some_frozen
        for rise, net, kind, name in _stretches(self.model, Same(program), gradients, engine.follows_modules)[backward]:
            ledger.rise_and_settle(rise, net)
            self._call(kind, name, prefix, workspaces)

    def _call(self, kind: int, name: str, prefix: str, workspaces: Callable[[int], None]) -> None:
        if kind == GRADIENT:
            self.engine.gradient(self.indices[prefix + name])
        elif kind == PRODUCT:
            workspaces(AUTOGRADS_THREAD)
        elif kind > 0 and self.engine.follows_modules:
            self.engine.module(kind)


def varied_of(run: Run, engine: Engine, kernels: Kernels) -> Varied | None:
    """What a walk of ``run`` needs where layers differ or not all is trained; None where it is a plain one."""
    return Varied(run.model, run.plan, engine, kernels) if layers_vary(run.model, run.plan.workload) else None


def trained_run(run: Run) -> Run:
    """``run`` as its engine knows it: of the parameters that are trained, but at stage 3."""
    if all_trained(run.model) or run.plan.zero.stage == STAGE_OF_ALL:
        return run
    return replace(run, model=trained_part(run.model), built=run.model)


@lru_cache(maxsize=1024)
def _stretches(
    model: ModelShape, same: Same[Program], gradients: bool, modules: bool
) -> tuple[tuple[NamedStretch, ...], tuple[NamedStretch, ...]]:
    """Forward and backward of a piece, cut where the engine wants to be called."""
    program = same.thing
    return tuple(named_stretches(model, program.forward, gradients, modules)), tuple(
        named_stretches(model, program.backward, gradients, modules)
    )
