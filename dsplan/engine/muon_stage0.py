"""Stage 0 with Muon: the optimizer's step orthogonalises each matrix, of its own shape and in fp32.

Source: DeepSpeed 0.19.8 runtime/zero/muon/muon_optimizer.py (MuonWithAuxAdam.step): in fp32 on the model's parameters,
in 16 bit on the fp32 twins of runtime/fp16/unfused_optimizer.py.
"""

from __future__ import annotations

from dsplan import states
from dsplan.engine.base import Run
from dsplan.engine.muon_groups import muon_groups
from dsplan.engine.muon_update import Updates
from dsplan.engine.stage0 import Stage0, Stage0Plain, Stage0Unfused
from dsplan.overhead import WORKSPACE


class _MuonUpdate(Stage0):
    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self.compiled = Updates()
        self.muons, self.adams = muon_groups(run.model)

    def update(self, *, makes_states: bool) -> None:
        """Matrix by matrix, the update of one there until that of the next is; then Adam's parameters."""
        ledger, model, held = self.ledger, self.run.model, 0
        for index, numel in zip(self.muons.order, self.muons.numels, strict=True):
            if makes_states:
                ledger.alloc(states.MUON_MOMENTUM, 4 * numel)
            self.compiled.take(ledger, model.parameters[index].shape, "fp32")
            ledger.free(states.MUON_UPDATES, held)
            held = 4 * numel
        if makes_states:
            for numel in self.adams.numels:
                for _ in range(self.optimizer.num_states):
                    ledger.alloc(states.OPTIMIZER_STATES, 4 * numel)
        ledger.free(states.MUON_UPDATES, held)


class MuonStage0Plain(_MuonUpdate, Stage0Plain):
    """fp32: the optimizer works on the model's own parameters."""


class MuonStage0Unfused(_MuonUpdate, Stage0Unfused):
    """fp16 or bf16: it works on fp32 twins, and steps once while it is made, with gradients of zeros."""

    _multiplied = False  # before the first forward pass

    def update(self, *, makes_states: bool) -> None:
        """As Muon's; the first, of the initialisation, has the program's first product, and so cuBLAS' workspace."""
        if makes_states:
            self._multiplied = True
            self.ledger.alloc(WORKSPACE, self.run.kernels.workspace_bytes)
        super().update(makes_states=makes_states)

    def begin_forward(self) -> None:
        if self._multiplied:  # from here on the walk has it, with the forward pass' first product
            self._multiplied = False
            self.ledger.free(WORKSPACE, self.run.kernels.workspace_bytes)
