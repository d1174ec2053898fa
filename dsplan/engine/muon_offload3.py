"""Stage 3 with Muon and the optimizer on the CPU: every rank updates every matrix, a sub-group at a time.

Source: DeepSpeed 0.19.8 runtime/zero/stage3.py (_apply_muon_updates_cpu_offload, whose names these are).
"""

from __future__ import annotations

from dsplan import buffers, states
from dsplan.engine.muon_stage3 import MuonStage3

FULL = 4  # bytes of an fp32 element: gradients are fp32 on the host


class MuonOffload3(MuonStage3):
    """All ranks are alike."""

    def _take_updates(self) -> None:
        """_apply_muon_updates_cpu_offload."""
        self.ledger.moment = "Muon's updates"
        for group in self.sub_groups:
            if self._is_muons(group):
                self._update_group(group)
        for name in ("local_grad_parts", "local_momentum_parts", "local_update", "scaled", "local_momentum"):
            self._free(name, states.MUON_EXCHANGE)
        self._free("update", states.MUON_UPDATES)
        self._free("full_grads", states.MUON_GATHERED)

    def _update_group(self, group: list[int]) -> None:
        ledger, workload = self.ledger, self.run.plan.workload
        accumulated = workload.grad_accum_dtype or workload.precision
        parts = [self.parts[index] for index in group]
        for name in ("local_grad_parts", "local_momentum_parts"):
            self._free(name, states.MUON_EXCHANGE)
        self._bind_new("local_grad_parts", [FULL * part for part in parts])
        self._bind_new("local_momentum_parts", [self.c * part for part in parts])
        self._bind("full_grads", self._gather(parts, lists=2), states.MUON_GATHERED)
        for index, part in zip(group, parts, strict=True):
            self.compiled.take(ledger, self.run.model.parameters[index].shape, accumulated)
            self._bind("update", [self.g * self.sizes[index]], states.MUON_UPDATES)
            self._bind_new("local_update", [self.g * part])
            if workload.precision == "fp16":  # times the loss scale
                self._bind_new("scaled", [self.g * part])
            if self.g != FULL:
                ledger.temporary(states.MUON_EXCHANGE, FULL * part)
            self._bind_new("local_momentum", [self.g * part])
            if self.casts_for_accumulation:  # to the momentum's own dtype, the communication's
                ledger.temporary(states.MUON_EXCHANGE, self.c * part)
            ledger.temporary(buffers.NORM, 8 * part)

    def _gather(self, parts: list[int], *, lists: int) -> list[int]:
        """As Muon's, in the dtype of the accumulation; of a single rank only what has another is copied."""
        if self.run.world_size > 1:
            return super()._gather(parts, lists=lists)
        cast = [self.g * part for part in parts] * ((self.g != FULL) + self.casts_for_accumulation)
        self.ledger.alloc_many(states.MUON_GATHERED, cast)
        return cast
