"""Stage 2 with gradients accumulated in fp32 beside 16-bit ones: the rank's partition is a single fp32 tensor.

Source: DeepSpeed 0.19.8 runtime/zero/stage_1_and_2.py (_use_compact_grad_partition_buffer and what asks it); function
names in the comments are that file's.
"""

from __future__ import annotations

from dsplan import buffers, states
from dsplan.engine.base import Run
from dsplan.engine.stage12 import Stage12
from dsplan.partition import FlatPartition


class Stage2Fp32(Stage12):
    """One rank; ``data_types.grad_accum_dtype`` is fp32, the model's dtype is not."""

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self._exists = False  # the fp32 partition, from the first owned gradient of a step on

    def _num_slices(self) -> int:
        """Of a contiguous bucket, each owned gradient has an output of its own; the others are merged by rank."""
        if not self.contiguous:
            return len(self.bucket)
        owned = sum(self._owns(index) for index in self.bucket)
        if not owned:
            return self._ranks_in_bucket()
        begin = self.partition.size * self.run.rank
        left = self.bucket_begin < begin
        right = self.bucket_end > begin + self.partition.size
        return owned + left + right

    def _collective(self) -> None:
        if not self._exists and any(self._owns(index) for index in self.bucket):
            # _get_compact_grad_partition_slice: made of zeros where it is first asked for.
            self._exists = True
            self.ledger.alloc(states.COMPACT_GRADIENTS, 4 * self.partition.size)
        super()._collective()

    def _take_reduced(self) -> None:
        """_add_to_grad_partition_buffer: each owned slice is cast to be added."""
        if self.c == 4:
            return
        for index in self.bucket:
            if self._owns(index):
                self.ledger.temporary(buffers.ACCUMULATION_COPY, 4 * self._slice(index))

    def _keep_owned(self, index: int, *, separate: bool) -> None:
        """copy_grads_in_partition: the partition has it already; a gradient apart stays until the epilogue."""
        if self.offload and self.boundary:
            self.ledger.temporary(buffers.NORM, 8 * self._slice(index))
        if separate and self.offload and self.boundary:
            self.ledger.free(states.GRADIENTS, self.e * self.sizes[index])
        elif separate:
            self.leftovers.append(index)

    def step(self, *, first: bool) -> None:
        super().step(first=first)
        if self.offload and self._exists:
            self.ledger.free(states.COMPACT_GRADIENTS, 4 * self.partition.size)
        self._exists = False

    def _step_gradient(self, part: FlatPartition) -> int:
        """_get_preflattened_grad_partition: the partition itself."""
        size = 4 * part.size
        if self._exists:
            self.ledger.move(states.COMPACT_GRADIENTS, buffers.STEP_GRADIENT, size)
        else:
            self.ledger.alloc(buffers.STEP_GRADIENT, size)
        return size
