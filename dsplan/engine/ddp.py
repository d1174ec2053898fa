"""DDP: torch's DistributedDataParallel with native AMP, without DeepSpeed: fp32 weights on every rank.

Source: torch 2.13 torch/nn/parallel/distributed.py, torch/csrc/distributed/c10d/reducer.cpp, torch/amp,
torch/optim/adam.py. In 16-bit precisions operators run under ``torch.autocast`` (``dsplan.engine.autocast``) and
parameters, gradients and states stay fp32; in fp32 there is no autocast.

Legend: Ψ parameters, N ranks.
"""

from __future__ import annotations

from dataclasses import replace

from dsplan import states
from dsplan.engine.autocast import FULL
from dsplan.engine.base import Engine, Run
from dsplan.engine.stretches import Runs
from dsplan.ledger import Term
from dsplan.operators import PARAMETER_GRADIENT
from dsplan.optimizers import device_optimizer
from dsplan.tape import GRADIENT
from dsplan.units import MIB

#: Where a bucket closes: distributed.py ``_DEFAULT_BUCKET_CAP_MB``, and the first ``_DEFAULT_FIRST_BUCKET_BYTES``.
BUCKET_BYTES = 25 * MIB
FIRST_BUCKET_BYTES = MIB
#: distributed.py ``broadcast_bucket_size``.
BROADCAST_BYTES = 250 * MIB
#: reducer.cpp, broadcast_coalesced: flat copies that may be on their way at once.
BROADCASTS_IN_FLIGHT = 2

PARAMETERS = Term("fp32 parameters", "4·Ψ", "torch.amp: the weights stay fp32, autocast casts copies of them")
GRADIENTS = Term(
    "fp32 gradients", "4·Ψ", "torch autograd; freed by zero_grad(set_to_none=True), torch/optim/optimizer.py"
)
STATES = Term("optimizer states", "4·Ψ per state (Adam: 2)", "torch/optim/adam.py _init_group, in the first step")
TEMPORARY = Term("optimizer temporaries", "4·Ψ each", "torch/optim/adam.py _multi_tensor_adam: exp_avg_sq_sqrt")
BUCKETS = Term(
    "gradient buckets of DDP",
    "4·Ψ",
    "reducer.cpp initialize_buckets; with gradient_as_bucket_view=False, the default, beside the gradients",
)
BROADCAST = Term(
    "flat copies for DDP's broadcast",
    "2 of 250 MiB",
    "distributed.py _sync_module_states, _sync_buffers; reducer.cpp broadcast_coalesced",
)


class Ddp(Engine):
    """Every rank is alike: weights, gradients, buckets and states whole, in fp32."""

    #: ``zero_grad(set_to_none=True)``, the default since torch 2.0: no gradient lives between steps.
    frees_gradients = True

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self.e = FULL  # of a parameter; run.element_bytes is autocast's
        self.optimizer = device_optimizer(replace(run.plan, torch_adam=True))
        self.total = sum(self.sizes)
        self.foreach = run.kernels.foreach_optimizers
        self.follows_gradients = run.plan.workload.gradient_accumulation_steps > 1 or not self.frees_gradients

    def initialise(self) -> None:
        """Build on the host, move, wrap: rank 0's weights are broadcast and the buckets made."""
        ledger = self.ledger
        self.build_on_host_and_move()
        for size in self.bytes_each(FULL):
            ledger.move(states.PARAMETERS, PARAMETERS, size)
        if self.optimizer.states_at_construction:
            self._states()
        ledger.moment = "broadcasting the parameters"
        self._broadcast([*self.sizes, *[self._buffer_bytes // FULL] * self._num_buffers])
        ledger.moment = "gradient buckets"
        ledger.alloc_many(BUCKETS, bucket_bytes(self.sizes))

    def begin_forward(self) -> None:
        """DistributedDataParallel.forward: the buffers of rank 0 are broadcast before every pass."""
        self._broadcast([self._buffer_bytes // FULL] * self._num_buffers)

    def _broadcast(self, sizes: list[int]) -> None:
        """Flat copies of up to 250 MiB, or of one larger tensor; a single tensor flattens to a view."""
        copies: list[list[int]] = [[]]
        for numel in sizes:
            if copies[-1] and FULL * (sum(copies[-1]) + numel) > BROADCAST_BYTES:
                copies.append([])
            copies[-1].append(numel)
        flat = [FULL * sum(copy) if len(copy) > 1 else 0 for copy in copies]
        for index, size in enumerate(flat):
            self.ledger.alloc(BROADCAST, size)
            if index >= BROADCASTS_IN_FLIGHT - 1:
                self.ledger.free(BROADCAST, flat[index - BROADCASTS_IN_FLIGHT + 1])
        for size in flat[-(BROADCASTS_IN_FLIGHT - 1) :]:
            self.ledger.free(BROADCAST, size)

    def gradient(self, index: int) -> None:
        """AccumulateGrad keeps the first gradient and adds the next to it; the reducer copies it into its bucket."""
        size = FULL * self.sizes[index]
        if self._held[index]:
            self.ledger.free(PARAMETER_GRADIENT, size)
            return
        self._held[index] = True
        self.ledger.move(PARAMETER_GRADIENT, GRADIENTS, size)

    def blocks_at_once(self, layers: range, calls: tuple[tuple[int, int], ...]) -> Runs | None:
        """The reducer's buckets exist already, so that a gradient does as in every engine."""
        if not any(kind == GRADIENT for kind, _ in calls):
            return super().blocks_at_once(layers, calls)
        return self.holding(layers, calls)

    def step(self, *, first: bool) -> None:
        ledger = self.ledger
        ledger.moment = "optimizer update"
        if first and not self.optimizer.states_at_construction:
            self._states()
        elements = self.total if self.foreach else max(self.sizes)
        ledger.temporary(TEMPORARY, FULL * elements * self.optimizer.step_temporaries(foreach=self.foreach))
        if self.frees_gradients:
            ledger.free_many(GRADIENTS, self.bytes_each(FULL))
            self._held = bytearray(len(self.sizes))

    def _states(self) -> None:
        for _ in range(self.optimizer.num_states):
            self.ledger.alloc_many(STATES, self.bytes_each(FULL))


def bucket_bytes(sizes: tuple[int, ...]) -> tuple[int, ...]:
    """Bytes of each bucket (reducer.cpp compute_bucket_assignment_by_size): it closes once it reaches its limit."""
    found: list[int] = []
    open_bytes = 0
    for numel in sizes:
        open_bytes += FULL * numel
        if open_bytes >= (BUCKET_BYTES if found else FIRST_BUCKET_BYTES):
            found.append(open_bytes)
            open_bytes = 0
    return (*found, open_bytes) if open_bytes else tuple(found)
