"""Risen: what a run adds to the resident memory of a rank's process, as a measurement tells it.

Beside tensors that is the process itself, which grows as the device is used and as kernels are loaded
(:func:`dsplan.overhead.process_memory`). Their peaks need not coincide: what the host holds while the model is built
has often gone by the first forward pass.
"""

from __future__ import annotations

from collections.abc import Iterable

from dsplan.engine import candidate_ranks
from dsplan.engine.base import Run
from dsplan.engine.chosen_leaves import with_chosen_leaf
from dsplan.engine.trained import trained_part
from dsplan.kernels import Kernels
from dsplan.ledger import DEVICE, PAGEABLE, PINNED, Ledger, Term
from dsplan.model import ModelShape
from dsplan.overhead import ProcessMemory, process_memory
from dsplan.plan import Plan
from dsplan.walk import Walk


def risen_bytes(
    model: ModelShape,
    plan: Plan,
    world_size: int,
    kernels: Kernels,
    *,
    rank: int | None = None,
    capacity_bytes: int | None = None,
) -> int:
    """Resident bytes of a rank at its peak, over those of a process that has joined the group and done nothing yet.

    Args:
        rank: None: the highest of all that can be the worst.
        capacity_bytes: as for :func:`dsplan.walk.walk`.
    """
    model = with_chosen_leaf(model, plan.zero)
    ranks = candidate_ranks(trained_part(model), plan, world_size) if rank is None else (rank,)
    highest = 0
    for one in ranks:
        ledger = _WithProcess(kernels, process_memory(world_size))
        run = Run(
            model=model,
            plan=plan,
            world_size=world_size,
            kernels=kernels,
            ledger=ledger,
            rank=one,
            capacity_bytes=capacity_bytes,
        )
        Walk(run).take()
        highest = max(highest, ledger.host_total_peak)
    return highest


class _WithProcess(Ledger):
    """A ledger whose host peak is that of its tensors and of what the process has grown by."""

    def __init__(self, kernels: Kernels, process: ProcessMemory) -> None:
        super().__init__(kernels)
        self._process = process
        self._grown = 0

    def alloc(self, term: Term, size: int) -> None:
        self._use(term)
        super().alloc(term, size)

    def alloc_many(self, term: Term, sizes: Iterable[int]) -> None:
        self._use(term)
        super().alloc_many(term, sizes)

    def end(self) -> None:
        super().end()
        if self._phase_name == "forward":
            self._grow(self._process.steps_bytes)

    def _use(self, term: Term) -> None:
        if term.place == DEVICE:
            self._grow(self._process.engine_bytes)

    def _grow(self, process_bytes: int) -> None:
        grown = process_bytes - self._process.start_bytes
        if grown > self._grown:
            self._grown = grown
            self._reach()

    def _host(self, place: str, size: int) -> None:
        super()._host(place, size)
        self._reach()

    def _reach(self) -> None:
        level = self._grown + self.host_level[PINNED] + self.host_level[PAGEABLE]
        self.host_total_peak = max(self.host_total_peak, level)
