"""Stage 3's gradients: bucket, reduce-scatter, and the rank's partitions, on the device or on their way to the host.

Source: DeepSpeed 0.19.8 runtime/zero/stage3.py (DeepSpeedZeroOptimizer_Stage3) and
runtime/comm/coalesced_collectives.py; function names in the comments are those files'.

Legend: e, c, g bytes of an element of a gradient, in its communication, where it is accumulated.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, partial

from dsplan import buffers, states
from dsplan.engine.base import Engine, Run
from dsplan.engine.reduce_buckets import block_buckets
from dsplan.engine.stretches import NOTHING, Runs, Same, first_of_block
from dsplan.kernels import Kernels
from dsplan.ledger import Term
from dsplan.operators import PARAMETER_GRADIENT
from dsplan.partition import parameter_sizes
from dsplan.units import MIB, ceil_div

#: stage3.py _constant_buffered_norm2: the norm of an offloaded gradient is taken in parts of this size.
NORM_PART_ELEMENTS = 250_000_000

#: swap_tensor/utils.py MIN_AIO_BYTES: smaller tensors are not written to NVMe.
MIN_SWAP_BYTES = MIB
#: swap_tensor/utils.py AIO_ALIGNED_BYTES, in fp32 elements; one thread an operation (aio.intra_op_parallelism).
SWAP_ALIGNMENT_ELEMENTS = 256

_Live = list[tuple[Term, int]]


class Stage3Gradients(Engine):
    """What stage 3 does with every gradient from autograd's hook to the end of the backward pass."""

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        zero, workload = run.plan.zero, run.plan.workload
        self.zero = zero
        self.offload = zero.offloads_optimizer
        self.swaps_optimizer = zero.offload_optimizer.device == "nvme"
        self.g = workload.accumulation_bytes
        self.c = workload.communication_bytes
        self.parts: Sequence[int] = parameter_sizes(run.model).map(lambda numel: ceil_div(numel, run.world_size))
        communicated = workload.communication_data_type or workload.precision
        self.casts_for_communication = communicated != workload.precision
        self.casts_for_accumulation = communicated != (workload.grad_accum_dtype or workload.precision)
        self._padding = _padding_bytes(self.sizes, run.world_size, self.c, run.kernels)
        self._bucket: list[int] = []
        self._bucket_elements = 0
        self.swapped_gradients: frozenset[int] = frozenset()  # of the sub-groups that are on the drive
        self._unswapped_parts: list[int] = []  # small fp32 gradients that stay on the device until the step

    def elements_of(self, group: Sequence[int]) -> int:
        """Elements of the rank's parts of parameters one after the other, as sub-groups have them."""
        return sum(self.parts[group[0] : group[-1] + 1])

    def gradient(self, index: int) -> None:
        """reduce_independent_p_g_buckets_and_remove_grads."""
        numel, limit = self.sizes[index], self.zero.reduce_bucket_size
        if self.ledger.detailed:
            self.ledger.move(PARAMETER_GRADIENT, states.GRADIENTS, self.e * numel)
        if self._bucket and self._bucket_elements + numel > limit:
            self._reduce_bucket()
        if self.zero.contiguous_gradients and self._bucket_elements + numel <= limit:
            self.ledger.free(states.GRADIENTS, self.e * numel)
        self._bucket.append(index)
        self._bucket_elements += numel

    def buckets_at_once(self, layers: range, order: tuple[int, ...]) -> Runs | None:
        """What happens at the gradients of ``layers``, which arrive in ``order``; the engine is then as after them.

        None: the gradients of the first of these layers have to be taken one by one.
        """
        model, limit = self.run.model, self.zero.reduce_bucket_size
        begin = first_of_block(model, layers[0])
        sizes = tuple([self.sizes[begin + index] for index in order])
        alike = self.blocks_are_alike and len(order) == len(model.block_parameters) and not self.swaps_optimizer
        if not alike or max(sizes) > limit or self._bucket_elements > limit:
            return None
        buckets = block_buckets(
            sizes,
            (0,) * len(sizes),  # where they are in the flat buffer does not matter here
            num_blocks=len(layers),
            onwards=layers.step,
            limit=limit,
            pending=self._bucket_elements,
            base=0,
            partition=model.num_parameters,
            rules=(Same(self.run.plan), self.run.world_size, self.run.kernels, self.boundary),
        )

        def fill(bucket: int) -> None:
            self._bucket += [
                first_of_block(model, layers[block]) + order[place] for block, place in buckets.gradients(bucket)
            ]
            self._bucket_elements += buckets.bucket(bucket).elements

        def reduce(bucket: int) -> None:
            fill(bucket)
            self._reduce_bucket()

        effect = self.ledger.effect
        special = {0: effect(partial(reduce, 0))} if buckets.count else {}
        buckets.find_effects(effect, reduce)
        fill(buckets.count)
        rounded = self.run.kernels.rounded
        freed = [(0, -rounded(self.e * numel) if self.zero.contiguous_gradients else 0) for numel in sizes]
        return buckets.of_blocks((*freed, NOTHING), special)

    def _reduce_bucket(self) -> None:
        """__reduce_and_partition_ipg_grads, then partition_grads."""
        ledger = self.ledger
        bucket, self._bucket = self._bucket, []
        elements, self._bucket_elements = self._bucket_elements, 0
        if not bucket:
            return
        own_storages = not self.zero.contiguous_gradients or elements > self.zero.reduce_bucket_size
        if self.zero.reduce_scatter or own_storages:
            live, held = self._scatter(sorted(bucket), own_storages=own_storages)
            bucket.sort()
        else:  # __avg_scatter_contiguous_grads: in the bucket, whose scaled copy the partitions are views of
            scaled = [(buffers.SCALED_COPY, self.c * elements)] if self.run.world_size > 1 else []
            for copy in scaled:
                ledger.alloc(*copy)
            live, held = self._cast(scaled, [elements], held=True)
        for index in bucket:
            if self.offload:
                self._to_host(index)
            if own_storages and not held:
                ledger.free(states.GRADIENTS, self.e * self.sizes[index])
        if self.swapped_gradients and self.boundary:
            self._swap_out([index for index in bucket if index in self.swapped_gradients])
        if own_storages and held:
            ledger.free_many(states.GRADIENTS, (self.e * self.sizes[index] for index in bucket))
        for kept in live:
            ledger.free(*kept)

    def _scatter(self, bucket: list[int], *, own_storages: bool) -> tuple[_Live, bool]:
        """__avg_scatter_grads: what the partitions take, and whether they are views that hold the gradients."""
        ledger, world = self.ledger, self.run.world_size
        casts = self.casts_for_communication and own_storages
        cast = [(buffers.COMMUNICATION_COPY, self.c * self.sizes[index]) for index in bucket] if casts else []
        for copy in cast:
            ledger.alloc(*copy)
        live: _Live = []
        # reduce_scatter_coalesced: a single tensor without padding is not copied.
        viewed = len(bucket) == 1 and self.sizes[bucket[0]] % world == 0
        if not viewed:
            live.append((buffers.SCATTER_COPY, self.c * sum(self.parts[index] * world for index in bucket)))
            padding = sum(self._padding[index] for index in bucket)
            ledger.event(buffers.SCATTER_PADDING, padding, 1)  # lists of the function's own, gone when it returns
            ledger.alloc(*live[0])
            ledger.event(buffers.SCATTER_PADDING, -padding, -1)
        live, held = self._cast(live, [self.parts[index] for index in bucket], held=viewed and not casts)
        if viewed and casts and not self.casts_for_accumulation:
            return cast, False  # the partition is a view of the cast gradient
        for copy in cast:  # the list goes with the function that made it
            ledger.free(*copy)
        return live, held

    def _cast(self, live: _Live, partitions: list[int], *, held: bool) -> tuple[_Live, bool]:
        """Reduced partitions in the dtype of the accumulation; what they were cast from goes."""
        if not self.casts_for_accumulation:
            return live, held
        copies = [(buffers.ACCUMULATION_COPY, self.g * numel) for numel in partitions]
        for copy in copies:
            self.ledger.alloc(*copy)
        for kept in live:
            self.ledger.free(*kept)
        return copies, False

    def _to_host(self, index: int) -> None:
        """partition_grads: a partition returns to the device for its norm and its cast."""
        ledger, part = self.ledger, self.parts[index]
        one_pool = self.run.kernels.one_pool
        keeps = index in self.swapped_gradients and self.boundary
        if not one_pool:
            ledger.alloc(buffers.GPU_STAGING, self.g * part)
        if self.boundary:
            ledger.temporary(buffers.NORM, 8 * min(part, NORM_PART_ELEMENTS))
            if keeps and (self.g != 4 or one_pool):
                ledger.alloc(buffers.OFFLOAD_CAST, 4 * part)
            elif self.g != 4:
                ledger.temporary(buffers.OFFLOAD_CAST, 4 * part)
        if keeps and self.g == 4 and not one_pool:
            ledger.move(buffers.GPU_STAGING, buffers.OFFLOAD_CAST, 4 * part)
        elif not one_pool:
            ledger.free(buffers.GPU_STAGING, self.g * part)

    def _swap_out(self, bucket: list[int]) -> None:
        """_swap_out_offload_fp32_gradients writes the large ones; the small ones wait on the device.

        So does a large one whose length is not aligned (_adjust_for_misaligned_lengths): its last elements are a view.
        """
        for index in bucket:
            if 4 * self.parts[index] >= MIN_SWAP_BYTES and self.parts[index] % SWAP_ALIGNMENT_ELEMENTS == 0:
                self.ledger.free(buffers.OFFLOAD_CAST, 4 * self.parts[index])
            else:
                self._unswapped_parts.append(index)


@lru_cache(maxsize=64)
def _padding_bytes(sizes: tuple[int, ...], world_size: int, width: int, kernels: Kernels) -> tuple[int, ...]:
    """reduce_scatter_coalesced: of each gradient a tensor for every rank's part that it does not fill (bytes)."""
    found = {}
    for numel in set(sizes):
        part = ceil_div(numel, world_size)
        filled = ceil_div(numel, part)
        rest = width * (filled * part - numel)
        found[numel] = (world_size - filled) * kernels.rounded(width * part) + kernels.rounded(rest)
    return tuple(map(found.__getitem__, sizes))
