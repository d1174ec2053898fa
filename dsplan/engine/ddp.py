"""DDP: torch's DistributedDataParallel with native AMP, without DeepSpeed: fp32 weights on every rank.

Source: torch 2.13 torch/nn/parallel/distributed.py, torch/csrc/distributed/c10d/reducer.cpp and comm.cpp, torch/amp,
torch/optim/adam.py. In 16-bit precisions operators run under ``torch.autocast`` (``dsplan.engine.autocast``) and
parameters, gradients and states stay fp32; in fp32 there is no autocast.

Legend: Ψ parameters, N ranks.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from dsplan import states
from dsplan.activations import Program
from dsplan.engine.autocast import FULL
from dsplan.engine.base import Engine, Run
from dsplan.engine.stretches import Runs, first_of_block, gradient_indices
from dsplan.ledger import Term
from dsplan.operators import PARAMETER_GRADIENT
from dsplan.optimizers import device_optimizer
from dsplan.tape import GRADIENT
from dsplan.units import MIB, round_up

#: Where a bucket closes once they are rebuilt: distributed.py ``_DEFAULT_BUCKET_CAP_MB``, and the first
#: ``_DEFAULT_FIRST_BUCKET_BYTES``.
BUCKET_BYTES = 25 * MIB
FIRST_BUCKET_BYTES = MIB
#: distributed.py ``broadcast_bucket_size``.
BROADCAST_BYTES = 250 * MIB
#: comm.cpp, broadcast_coalesced: flat copies that may be on their way at once.
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
    "reducer.cpp initialize_buckets, anew in the second step (rebuild_buckets); beside the gradients, with "
    "gradient_as_bucket_view=False, the default",
)
BROADCAST = Term(
    "flat copies for DDP's broadcast",
    "2 of 250 MiB",
    "distributed.py _sync_module_states, _sync_buffers; comm.cpp broadcast_coalesced",
)

NORMS = Term(
    "norms of the gradients",
    "of every parameter a scalar, and 4 for each 65,536 elements of the largest",
    "torch/nn/utils/clip_grad.py _get_total_norm; aten/src/ATen/native/cuda/ForeachReduceOp.cu",
)
#: Elements of a gradient whose norm a block of threads leaves to the others (MultiTensorApply.cuh kChunkSize).
NORM_CHUNK = 65_536


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
        self._synchronises = True  # the buffers before the next pass
        self._has_reduced = self._is_rebuilt = False

    def initialise(self) -> None:
        """Build on the host, move, wrap: rank 0's weights are broadcast and a bucket made; then the optimizer.

        The bucket is one for all, since nobody knows yet in which order the gradients come (distributed.py
        ``compute_bucket_size_limits``).
        """
        ledger = self.ledger
        self.build_on_host_and_move()
        for size in self.bytes_each(FULL):
            ledger.move(states.PARAMETERS, PARAMETERS, size)
        ledger.moment = "broadcasting the parameters"
        self._broadcast([*self.sizes, *self._buffers])
        ledger.moment = "gradient buckets"
        ledger.alloc(BUCKETS, FULL * self.total)
        if self.optimizer.states_at_construction:
            self._states()

    def begin_forward(self) -> None:
        """DistributedDataParallel._pre_forward: once there was an order the buckets are made by it; the buffers of rank
        0 are broadcast, but not after a pass without reduction (``require_forward_param_sync``)."""
        if self._has_reduced and not self._is_rebuilt:
            self._is_rebuilt = True
            self._rebuild()
        if self._synchronises:
            self._broadcast(self._buffers)
        self._synchronises = self.boundary

    def _rebuild(self) -> None:
        """reducer.cpp rebuild_buckets: the old bucket goes first, and what it was made of gives the new ones room, so
        that no segment of their own is theirs. NCCL's process group might hold the old one, for nobody waits for its
        all-reduce; on H200 it does not, nor where the loop waits for nothing (tests/gpu/ddp_rebuild.py)."""
        ledger = self.ledger
        ledger.free(BUCKETS, FULL * self.total)
        sizes = self.sizes
        for size in bucket_bytes(sizes[index] for index in ready_order(self.run)):
            ledger.event(BUCKETS, round_up(size, self.run.kernels.block_bytes), 1)

    @property
    def _buffers(self) -> list[int]:
        return [self._buffer_bytes // FULL] * self._num_buffers

    def _broadcast(self, sizes: list[int]) -> None:
        """Flat copies, each closed once it has 250 MiB; a single tensor flattens to a view."""
        copies: list[list[int]] = [[]]
        for numel in sizes:
            if FULL * sum(copies[-1]) >= BROADCAST_BYTES:
                copies.append([])
            copies[-1].append(numel)
        flat = [FULL * sum(copy) if len(copy) > 1 else 0 for copy in copies]
        for index, size in enumerate(flat):
            if index >= BROADCASTS_IN_FLIGHT:
                self.ledger.free(BROADCAST, flat[index - BROADCASTS_IN_FLIGHT])
            self.ledger.alloc(BROADCAST, size)
        for size in flat[-BROADCASTS_IN_FLIGHT:]:
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

    def end_backward(self, *, boundary: bool) -> None:
        self._has_reduced = self._has_reduced or boundary

    def step(self, *, first: bool) -> None:
        ledger = self.ledger
        if self.run.plan.gradient_clipping:
            ledger.moment = "clipping the gradients"
            self._clip()
        ledger.moment = "optimizer update"
        if first and not self.optimizer.states_at_construction:
            self._states()
        self._update()
        if self.frees_gradients:
            ledger.free_many(GRADIENTS, self.bytes_each(FULL))
            self._held = bytearray(len(self.sizes))

    def _clip(self) -> None:
        """A scalar for each gradient; CUDA's kernel has room for the parts of as many as the largest has; then all of
        them in one tensor."""
        ledger, count = self.ledger, len(self.sizes)
        scalars = (FULL,) * count
        parts = FULL * count * -(-max(self.sizes) // NORM_CHUNK) if self.foreach else 0
        ledger.alloc(NORMS, parts)
        ledger.alloc_many(NORMS, scalars)
        ledger.free(NORMS, parts)
        ledger.alloc(NORMS, FULL * count)
        ledger.temporary(NORMS, FULL)
        ledger.free(NORMS, FULL * count)
        ledger.free_many(NORMS, scalars)

    def _update(self) -> None:
        """Foreach optimizers take what they take for all parameters at once, the others for one after the other."""
        ledger, times = self.ledger, self.optimizer.step_temporaries(foreach=self.foreach)
        if not self.foreach:
            ledger.temporary(TEMPORARY, FULL * max(self.sizes) * times)
            return
        for _ in range(times):
            ledger.alloc_many(TEMPORARY, self.bytes_each(FULL))
        for _ in range(times):
            ledger.free_many(TEMPORARY, self.bytes_each(FULL))

    def _states(self) -> None:
        """Parameter by parameter all of its states (torch/optim/adam.py ``_init_group``)."""
        if not self.ledger.detailed:
            for _ in range(self.optimizer.num_states):
                self.ledger.alloc_many(STATES, self.bytes_each(FULL))
            return
        for size in self.bytes_each(FULL):
            for _ in range(self.optimizer.num_states):
                self.ledger.alloc(STATES, size)


def bucket_bytes(sizes: Iterable[int]) -> tuple[int, ...]:
    """Bytes of each bucket (reducer.cpp compute_bucket_assignment_by_size): it closes once it reaches its limit.

    ``sizes`` are the parameters' elements in the order in which their gradients come.
    """
    found: list[int] = []
    open_bytes = 0
    for numel in sizes:
        open_bytes += FULL * numel
        if open_bytes >= (BUCKET_BYTES if found else FIRST_BUCKET_BYTES):
            found.append(open_bytes)
            open_bytes = 0
    return (*found, open_bytes) if open_bytes else tuple(found)


def ready_order(run: Run) -> list[int]:
    """Indices of the parameters in the order in which their gradients come: as the programs of the model have it."""
    from dsplan.engine import programs_for

    model = run.model
    pieces = programs_for(run, run.kernels.of_programs(zero3_linear=False))
    indices = gradient_indices(model)
    block = [indices[name] for name in _gradients(pieces.block)]
    order = [~indices[name] for name in _gradients(pieces.head)]
    for layer in reversed(range(model.num_layers)):
        base = first_of_block(model, layer)
        order += [base + index for index in block]
    return order + [~indices[name] for name in _gradients(pieces.embedding)]


def _gradients(piece: Program) -> list[str]:
    return [str(what) for kind, _, what in piece.backward if kind == GRADIENT]
