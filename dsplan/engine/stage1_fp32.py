"""Stage 1 with gradients accumulated in fp32 beside 16-bit ones, in fp16 or with an offloaded optimizer.

bf16 on the device has DeepSpeed's BF16_Optimizer instead (``dsplan.engine.bf16``). Each gradient is cast to fp32 as
autograd hands it over and waits, whole, for the accumulation boundary; buckets and partition are fp32 too.

Source: DeepSpeed 0.19.8 runtime/zero/stage_1_and_2.py (use_grad_accum_attribute and what asks it); function names in
the comments are that file's.
"""

from __future__ import annotations

from dsplan import buffers, states
from dsplan.engine.base import Run
from dsplan.engine.stage2_fp32 import Stage2Fp32
from dsplan.operators import PARAMETER_GRADIENT
from dsplan.partition import FlatPartition

FULL = 4  # bytes of an fp32 element


class Stage1Fp32(Stage2Fp32):
    """One rank. Gradients have to be handed over one by one: each is cast when it comes."""

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self.follows_gradients = True
        self.casts = self.c != FULL  # of the bucket, which is fp32
        self.bucket_bytes = FULL * run.plan.zero.reduce_bucket_size
        self._num_buckets = 2 if self.overlap else 1
        self._filling = 0  # the bucket that is being filled
        self._viewed: set[int] = set()  # buckets that gradients of other ranks' parameters are views of

    def initialise(self) -> None:
        super().initialise()
        self.e = FULL  # of a gradient, from here on; parameters are done with

    def gradient(self, index: int) -> None:
        """process_gradients: the bucket exists from the first gradient on, though it is filled later."""
        ledger, numel = self.ledger, self.sizes[index]
        self._setup_buckets()
        ledger.alloc(states.GRADIENTS, FULL * numel)  # _fill_param_grad_accum_attribute
        if self._held[index]:
            ledger.free(states.GRADIENTS, FULL * numel)  # added to what was there
        self._held[index] = True
        ledger.free(PARAMETER_GRADIENT, self.run.element_bytes * numel)
        if self.reduces_in_hooks and self.boundary:
            self._reduce_into_bucket(index)

    def _reduce_into_bucket(self, index: int) -> None:
        flushes = self.bucket_elements + self.sizes[index] > self.zero.reduce_bucket_size
        super()._reduce_into_bucket(index)
        if flushes and self.overlap:
            self._filling = 1 - self._filling
        if self.contiguous and index != self.oversized and not self._owns(index):
            self._viewed.add(self._filling)

    def _keep_owned(self, index: int, *, separate: bool) -> None:
        """copy_grads_in_partition: the partition has it; grad_accum goes at once where there is a bucket."""
        if self.offload:
            self.ledger.temporary(buffers.NORM, 8 * self._slice(index))
        if separate and self.contiguous:
            self.ledger.free(states.GRADIENTS, FULL * self.sizes[index])
        elif separate:
            self.leftovers.append(index)

    def end_backward(self, *, boundary: bool) -> None:
        """reduce_gradients and its epilogue: grad_accum stays where it was not the rank's own, a bucket with it."""
        if not boundary:
            return
        ledger = self.ledger
        ledger.moment = "end of backward, gradient reduction"
        if not self.reduces_in_hooks:
            for index in range(len(self.sizes)):
                self._reduce_into_bucket(index)
        self._reduce_bucket()
        if self.buckets_exist:
            for _ in range(self._num_buckets - len(self._viewed)):
                ledger.free(buffers.REDUCE_BUCKET, self.bucket_bytes)
        self.buckets_exist = False

    def step(self, *, first: bool) -> None:
        if self.offload:
            super().step(first=first)
            self._drop_the_others()  # zero_grad
        else:
            super().step(first=first)

    def _step_gradient(self, part: FlatPartition) -> int:
        self._drop_the_others()  # free_grad_in_param_list
        return super()._step_gradient(part)

    def _drop_the_others(self) -> None:
        for _ in self._viewed:
            self.ledger.free(buffers.REDUCE_BUCKET, self.bucket_bytes)
        self._viewed, self._filling = set(), 0
        self._free_gradients(self.leftovers)
        self.leftovers = []
