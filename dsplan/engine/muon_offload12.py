"""Stages 1 and 2 with Muon and the optimizer on the CPU: whole matrices are gathered on the device to be updated.

Source: DeepSpeed 0.19.8 runtime/zero/stage_1_and_2.py (DeepSpeedZeroOptimizer); function names in the comments are that
file's.
"""

from __future__ import annotations

from collections.abc import Iterator

from dsplan import buffers, states
from dsplan.engine.base import Run
from dsplan.engine.muon_repeats import Repeats
from dsplan.engine.muon_stage12 import MuonStage12
from dsplan.partition import FlatPartition
from dsplan.units import MIB, round_up

#: __init__, _muon_allgather_max_buffer_bytes and _muon_allgather_max_cached_bytes.
MAX_BUFFER_BYTES, MAX_CACHED_BYTES = 64 * MIB, 256 * MIB
FULL = 4  # bytes of an fp32 element: gradients and momentum are fp32 on the host


class MuonOffload12(MuonStage12):
    """One rank; every rank updates every matrix, and keeps of the update what is its own."""

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self.scales = run.plan.workload.precision == "fp16"  # the loss
        if run.world_size > 1:
            self.num_steps = 3  # in the second it gathers the momentum too, into buffers of its own
        self._updated: Repeats[tuple[tuple[tuple[int, int], int], ...]] = Repeats()
        self._cached: dict[tuple[int, int], int] = {}  # bytes by elements of a chunk and lists of tensors, oldest first

    def _take_updates(self) -> None:
        """The step makes them, of gradients that are on the host then."""

    def step(self, *, first: bool) -> None:
        ledger = self.ledger
        ledger.moment = "Muon's updates"
        if first:
            ledger.alloc(states.HOST_MUON_MOMENTUM, FULL * self.muons.size)
        for batch in self._batches():
            self._update_like_before(batch, momentum_was_created=first)
        super().step(first=first)

    def _batches(self) -> Iterator[list[int]]:
        """_muon_param_batches: matrices in the order of the flat buffer, as many as half the budget holds, or one."""
        batch: list[int] = []
        elements = 0
        order = sorted(self.orders[0], key=self.offset)
        for index in order:
            if batch and elements + self.sizes[index] > MAX_BUFFER_BYTES // (2 * FULL):
                yield batch
                batch, elements = [], 0
            batch.append(index)
            elements += self.sizes[index]
        yield batch

    def _update_like_before(self, batch: list[int], *, momentum_was_created: bool) -> None:
        """As :meth:`_update_batch`; of matrices of the same shapes, of which the rank has as much, it comes to the
        same."""
        parameters, slice_of = self.run.model.parameters, self.slice_of
        shapes = tuple([parameters[index].shape for index in batch])
        if not self.compiled.repeat(self.ledger, shapes):
            self._update_batch(batch, momentum_was_created=momentum_was_created)
            return
        owned = tuple([slice_of.get(index, 0) for index in batch])
        chunk = self._most_of_a_rank(batch) if self.run.world_size > 1 else 0
        key = shapes, owned, chunk, momentum_was_created, tuple(self._cached)

        def act() -> tuple[tuple[tuple[int, int], int], ...]:
            self._update_batch(batch, momentum_was_created=momentum_was_created)
            return tuple(self._cached.items())

        self._cached = dict(self._updated.take(self.ledger, key, act))

    def _update_batch(self, batch: list[int], *, momentum_was_created: bool) -> None:
        """_apply_muon_updates_cpu_offload of one batch."""
        ledger, model = self.ledger, self.run.model
        whole = [FULL * self.sizes[index] for index in batch]
        lists = 1 if momentum_was_created else 2  # gradients, and the momentum that is not new
        for _ in range(lists):
            ledger.alloc_many(states.MUON_GATHERED, whole)
        if self.run.world_size > 1:
            self._gathering_buffers(batch, lists)
        if momentum_was_created:
            ledger.alloc_many(states.MUON_GATHERED, whole)
        held = 0
        for index in batch:
            self.compiled.take(ledger, model.parameters[index].shape, "fp32")
            ledger.free(states.MUON_UPDATES, held)
            held = FULL * self.sizes[index]
            own = self.slice_of.get(index, 0)
            scaled = FULL * own if self.scales else 0
            ledger.alloc(states.MUON_UPDATES, scaled)
            ledger.temporary(buffers.NORM, 8 * own)
            ledger.free(states.MUON_UPDATES, scaled)
        for _ in range(2):
            ledger.free_many(states.MUON_GATHERED, whole)
        ledger.free(states.MUON_UPDATES, held)

    def _gathering_buffers(self, batch: list[int], lists: int) -> None:
        """_muon_all_gather_partitions: a chunk of the rank's own and of all ranks' parts, kept for the next step."""
        world, ledger = self.run.world_size, self.ledger
        chunk = min(self._most_of_a_rank(batch), max(1, MAX_BUFFER_BYTES // ((world + 1) * lists * FULL)))
        found = self._cached.pop((chunk, lists), 0)
        size = FULL * chunk * lists
        if not found:
            while self._cached and sum(self._cached.values()) + (world + 1) * size > MAX_CACHED_BYTES:
                oldest = self._cached.pop(next(iter(self._cached)))
                ledger.free_many(states.MUON_GATHERING, (oldest // (world + 1), oldest // (world + 1) * world))
            ledger.alloc_many(states.MUON_GATHERING, (size, size * world))
        self._cached[chunk, lists] = (world + 1) * size

    def _most_of_a_rank(self, batch: list[int]) -> int:
        """Elements of the matrices of the rank that has most of them."""
        return _most_of_a_rank(self.offset(batch[0]), self.offset(batch[-1]) + self.sizes[batch[-1]], self.muons)


def _most_of_a_rank(begin: int, end: int, part: FlatPartition) -> int:
    """Of the elements [begin, end) of the flat buffer those of the rank that has most of them."""
    boundary = round_up(begin, part.size)
    if end <= boundary:
        return end - begin
    return max(boundary - begin, min(part.size, end - boundary))
