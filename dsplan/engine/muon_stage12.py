"""Stages 1 and 2 with Muon: two flat buffers, and gradients that become updates before buckets and gradients go.

Source: DeepSpeed 0.19.8 runtime/zero/stage_1_and_2.py (DeepSpeedZeroOptimizer); function names in the comments are that
file's.
"""

from __future__ import annotations

from dsplan import states
from dsplan.engine.base import Run
from dsplan.engine.muon_groups import muon_groups
from dsplan.engine.muon_update import Updates
from dsplan.engine.stage12 import Stage12
from dsplan.partition import FlatPartition


class MuonStage12(Stage12):
    """One rank. Buckets hold gradients of both groups; blocks are taken one by one, since Muon sorts its matrices."""

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self.compiled = Updates()
        self.has_momentum = False
        self.updates: list[int] = []  # bytes of each, a whole matrix

    def _partition(self) -> None:
        run, round_robin = self.run, self.run.plan.zero.round_robin_gradients
        groups = muon_groups(run.model)
        self.groups = tuple([each.partition(run.world_size, run.rank, round_robin=round_robin) for each in groups])
        self.muons, self.adams = self.groups
        self.partition = self.adams
        self.orders = tuple([each.order for each in groups])
        self.of_muon = frozenset(self.orders[0])
        offsets = [0] * len(self.sizes)
        for each in groups:
            for index, offset in each.offsets(run.world_size, round_robin=round_robin).items():
                offsets[index] = offset
        self.offset = offsets.__getitem__
        self.slice_of = {**self.muons.slice_of, **self.adams.slice_of}

    def _bytes_of_group(self, number: int) -> tuple[int, ...]:
        return tuple([self.e * self.sizes[index] for index in self.orders[number]])

    def _partition_of(self, index: int | None) -> FlatPartition:
        return self.muons if index in self.of_muon else self.adams

    def _empty_bucket(self) -> None:
        super()._empty_bucket()
        self.bucket_begin = max(part.padded for part in self.groups)  # of a single gradient, in its group

    # Backward.

    def _reduce_all(self) -> None:
        """reduce_gradients: every gradient, group by group."""
        for order in self.orders:
            for index in order:
                self._reduce_into_bucket(index)

    def _ranks_in_bucket(self) -> int:
        """average_tensor, rank_and_offsets: 1 where all gradients of the bucket are of one rank alone, else more."""
        ranks = set()
        for index in self.bucket:
            size, begin = self._partition_of(index).size, self.offset(index)
            ranks |= {begin // size, (begin + self.sizes[index] - 1) // size}
        return len(ranks)

    def _take_updates(self) -> None:
        """get_flat_partition: of each matrix that touches the rank's part the update, whole."""
        ledger, model = self.ledger, self.run.model
        ledger.moment = "Muon's updates"
        if not self.has_momentum:
            self.has_momentum = True
            ledger.alloc(states.MUON_MOMENTUM, self.e * self.muons.owned_elements)
            ledger.alloc(states.MUON_STAGED_MOMENTUM, self.e * self.muons.owned_elements)
        for index, numel in self.muons.owned:
            self.compiled.take(ledger, model.parameters[index].shape, self.run.plan.workload.precision)
            self.updates.append(self.e * numel)
        for gradients in (self.fresh, self.kept):  # of storages of their own; Adam's wait for the step
            self._free_gradients([index for index in gradients if index in self.of_muon])
        self.fresh = [index for index in self.fresh if index not in self.of_muon]
        self.kept = [index for index in self.kept if index not in self.of_muon]

    def end_backward(self, *, boundary: bool) -> None:
        super().end_backward(boundary=boundary)
        if boundary and not self.offload and not self.adams.owned:
            super()._release_partition(self.adams)  # nobody holds the gradients of Muon's matrices any longer

    # Step.

    def _release_partition(self, part: FlatPartition) -> None:
        if part is self.muons:
            self.ledger.free_many(states.MUON_UPDATES, self.updates)
            self.updates = []
        else:
            super()._release_partition(part)

    def _allocate_states(self, part: FlatPartition) -> None:
        if part is self.adams:
            super()._allocate_states(part)
