"""Checkpoints: where DeepSpeed's activation checkpointing keeps the inputs of the blocks that it runs again.

Without options an input stays where it is, and the model's program has it so. With them it is copied, moved to the
host or into a buffer, and what the program takes for it goes; in the backward pass it comes back.

Source: DeepSpeed 0.19.8 runtime/activation_checkpointing/checkpointing.py (CheckpointFunction; without a
model-parallel unit, so with partitions of one) and offload_activations.py (_ActivationOffloadEngine); function names
in the comments are theirs.

Legend: A bytes of a block's input, L blocks.
"""

from __future__ import annotations

from dsplan.activations import STREAM
from dsplan.engine.base import Run
from dsplan.errors import InputError
from dsplan.ledger import PAGEABLE, PINNED, Term

COPY = Term("copy of a block's input", "A", "checkpointing.py partition_activations: clone()")
PLACEHOLDER = Term(
    "placeholders of checkpointed inputs", "4 each", "checkpointing.py: arg.data = torch.empty([]), in torch's fp32"
)
BUFFERS = Term("buffers of checkpointed inputs", "number_checkpoints·A", "checkpointing.py contiguous_data_buffers")
HOST_BUFFERS = Term(
    "buffers of checkpointed inputs (host)",
    "number_checkpoints·A",
    "checkpointing.py contiguous_data_buffers with cpu_checkpointing",
    PAGEABLE,
)
HOST_INPUTS = Term(
    "checkpointed inputs (host)", "A per block", "checkpointing.py partition_activations: cpu()", PAGEABLE
)
HOST_POOL = Term(
    "checkpointed inputs (host)",
    "A per block but the last",
    "offload_activations.py _ActivationOffloadEngine, a pool that is never given back",
    PINNED,
)
HOST_POOL_TWIN = Term("unpinned twins while pinning (host)", "A", "offload_activations.py _empty_cpu_like", PAGEABLE)

PLACEHOLDER_BYTES = 4
#: offload_activations.py: inputs that stay on the device before they are copied (checkpointing.py asks for one), and
#: after that while their copies are under way (max_fwd_stash_count).
KEPT, STASHED = 1, 2


def checkpoints_of(run: Run) -> Checkpoints | None:
    """What a run does with its checkpointed inputs; None where they stay as they are.

    Raises:
        InputError: a decoder, whose blocks are checkpointed with more inputs than one; fewer buffers than blocks; or a
            CPU, where DeepSpeed empties what it has not copied.
    """
    options = run.plan.checkpointing
    if not (options.partition_activations or options.cpu_checkpointing):
        return None
    section = "activation_checkpointing"
    if run.model.decoder is not None:
        raise InputError(f"{section}: its options are modelled for minGPT only; a dry run knows {run.model.model_type}")
    if options.number_checkpoints is not None and options.number_checkpoints < run.model.num_layers:
        raise InputError(
            f"{section}.number_checkpoints: {options.number_checkpoints} is not allowed; the model has "
            f"{run.model.num_layers} blocks"
        )
    if run.kernels.one_pool:
        raise InputError(f"{section}: its options are not modelled on the CPU; use a device with memory of its own")
    return Partitioned(run) if options.partition_activations else Offloaded(run)


class Checkpoints:
    """The walk calls these around each block; they depend on ``layer``, so that blocks differ at both ends."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.ledger = run.ledger
        self.layers = run.model.num_layers
        workload = run.plan.workload
        width = 4 if run.plan.torch_autocast else workload.element_bytes
        self.input_bytes = width * workload.micro_batch_size * workload.sequence_length * run.model.hidden_size

    def before_forward(self, layer: int) -> None:
        """Block ``layer`` is about to run for the first time."""

    def after_forward(self, layer: int) -> None:
        """It has run; its input, which the program holds until the block before runs backward, may go."""

    def before_backward(self, layer: int) -> None:
        """It is about to run again."""


class Partitioned(Checkpoints):
    """``partition_activations``: a copy is kept and the input emptied; with ``cpu_checkpointing`` it is on the host."""

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        options = run.plan.checkpointing
        self.on_host = options.cpu_checkpointing
        self.contiguous = options.contiguous_memory_optimization
        self.buffers = options.number_checkpoints or self.layers

    def before_forward(self, layer: int) -> None:
        ledger, size = self.ledger, self.input_bytes
        ledger.alloc(COPY, size)
        if self.contiguous and layer == 0:
            ledger.alloc_many(HOST_BUFFERS if self.on_host else BUFFERS, (size,) * self.buffers)
        elif self.on_host and not self.contiguous:
            ledger.alloc(HOST_INPUTS, size)
        if self.contiguous or self.on_host:
            ledger.free(COPY, size)

    def after_forward(self, layer: int) -> None:  # noqa: ARG002
        ledger, size = self.ledger, self.input_bytes
        ledger.alloc(PLACEHOLDER, PLACEHOLDER_BYTES)
        ledger.free(STREAM, size)

    def before_backward(self, layer: int) -> None:
        ledger, size = self.ledger, self.input_bytes
        if self.contiguous and layer == self.layers - 1:  # the first to run: only what was saved is kept
            ledger.free_many(HOST_BUFFERS if self.on_host else BUFFERS, (size,) * (self.buffers - self.layers))
        if self.on_host:
            ledger.alloc(STREAM, size)
            ledger.free(HOST_BUFFERS if self.contiguous else HOST_INPUTS, size)
        else:
            ledger.move(BUFFERS if self.contiguous else COPY, STREAM, size)
        ledger.free(PLACEHOLDER, PLACEHOLDER_BYTES)


class Offloaded(Checkpoints):
    """``cpu_checkpointing`` alone: inputs go to a pinned pool on a stream of their own, one block later each."""

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self._pooled = False  # the first forward pass makes the pool

    def after_forward(self, layer: int) -> None:
        ledger, size = self.ledger, self.input_bytes
        gone = layer - KEPT - STASHED + 1
        if gone >= 0:  # _reap_forward_stash
            ledger.free(STREAM, size)
        if layer >= KEPT and not self._pooled:
            ledger.alloc(HOST_POOL_TWIN, size)
            ledger.alloc(HOST_POOL, size)
            ledger.free(HOST_POOL_TWIN, size)
        ledger.alloc(PLACEHOLDER, PLACEHOLDER_BYTES)

    def before_backward(self, layer: int) -> None:
        self._pooled = True
        if layer <= self.layers - 1 - KEPT - STASHED + 1:  # _restore_tensor: neither kept nor stashed
            self.ledger.alloc(STREAM, self.input_bytes)
        self.ledger.free(PLACEHOLDER, PLACEHOLDER_BYTES)
