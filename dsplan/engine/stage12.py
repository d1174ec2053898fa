"""Stages 1 and 2: one flat model buffer on every rank, masters, states and gradients partitioned.

Source: DeepSpeed 0.19.8 runtime/zero/stage_1_and_2.py (DeepSpeedZeroOptimizer); function names in
the comments are that file's.
"""

from __future__ import annotations

from collections.abc import Collection

from dsplan import buffers, states
from dsplan.engine.base import Run
from dsplan.engine.stage12_blocks import BlocksAtOnce
from dsplan.ledger import Term
from dsplan.optimizers import device_optimizer, host_optimizer
from dsplan.partition import FlatPartition, flat_offsets, flat_partition

#: stage_1_and_2.py __init__: ``torch.empty(1)`` stands for a parameter that is on the host to be flattened.
PLACEHOLDER_BYTES = 4


class Stage12(BlocksAtOnce):
    """One rank: ``run.rank`` says which part of each flat buffer is its own (``groups``).

    Each of the optimizer's parameter groups is flattened and cut by itself: here there is one, of all parameters, whose
    ``partition`` is the rank's. ``offset`` of a parameter is within its group. Buckets hold gradients of all groups.
    """

    takes_blocks_at_once = True

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self.zero = zero = run.plan.zero
        self._partition()
        self.offload = zero.offloads_optimizer
        self.optimizer = host_optimizer(run.plan) if self.offload else device_optimizer(run.plan)
        self.c = run.plan.workload.communication_bytes
        self.casts = run.plan.workload.communication_data_type is not None
        self.accumulates = run.plan.workload.gradient_accumulation_steps > 1
        self.contiguous = zero.contiguous_gradients or self.offload
        self.overlap = zero.overlaps_communication
        self.reduces_in_hooks = zero.stage == 2 or self.overlap
        self.alike_in_backward = not self.reduces_in_hooks
        self.follows_gradients = self.reduces_in_hooks or self.accumulates
        self.bucket_bytes = self.e * zero.reduce_bucket_size
        self.buckets_exist = False
        self.gradient_partition_exists = False  # grads_in_partition of this micro batch
        self.accumulated_partition_exists = False  # the views that averaged_gradients keeps alive
        self.host_accumulation_exists = False
        self._begin_reducing()

    def _begin_reducing(self) -> None:
        self.emptied = {}
        # Reduced gradients in storages of their own: freed in the epilogue; or, the rank's own, kept for the step.
        self.leftovers: list[int] = []
        # Of other ranks and reduced on a stream of their own: cleared before the next collective.
        self.reduced: list[int] = []
        self.fresh: list[int] = []
        self.kept: list[int] = []
        self._empty_bucket()

    def _partition(self) -> None:
        """The groups of parameters, and what of each is the rank's."""
        run, round_robin = self.run, self.run.plan.zero.round_robin_gradients
        self.partition = flat_partition(run.model, run.world_size, run.rank, round_robin)
        self.offset = flat_offsets(run.model, run.world_size, round_robin)
        self.groups: tuple[FlatPartition, ...] = (self.partition,)

    def _bytes_of_group(self, number: int) -> Collection[int]:  # noqa: ARG002  # there is one
        """Bytes of every parameter of a group."""
        return self.bytes_each(self.e)

    def _partition_of(self, index: int | None) -> FlatPartition:  # noqa: ARG002
        """That of the group of a parameter."""
        return self.partition

    def _empty_bucket(self) -> None:
        self.bucket: list[int] = []
        self.bucket_elements = 0
        self.bucket_begin, self.bucket_end = self.partition.padded, 0  # what it spans of the flat buffer
        self.oversized: int | None = None

    # Initialisation.

    def initialise(self) -> None:
        ledger, e = self.ledger, self.e
        self.build_on_host_and_move()
        if self.optimizer.states_at_construction:
            ledger.alloc_many(states.LEAKED_STATES, self.bytes_each(self.e))
        for number, part in enumerate(self.groups):
            sizes = self._bytes_of_group(number)
            if self._has_room(e * part.padded):
                ledger.moment = "flattening the parameters"
                ledger.alloc(states.PARAMETERS, e * part.padded)
                ledger.free_many(states.PARAMETERS, sizes)
            else:
                self._flatten_on_the_host(e * part.padded, sizes)
            ledger.moment = "fp32 master parameters"
            ledger.alloc(buffers.CAST, e * part.size)
            if self.offload:
                self._master_on_the_host(part)
            elif e == 4:
                ledger.move(buffers.CAST, states.MASTER, 4 * part.size)
            else:
                ledger.alloc(states.MASTER, 4 * part.size)
                ledger.free(buffers.CAST, e * part.size)
        if self.offload:
            self._gradients_on_the_host()
            return
        ledger.moment = "optimizer states"
        gradients = [4 * part.size for part in self.groups]
        ledger.alloc_many(buffers.INIT_GRADIENT, gradients)
        if self.optimizer.states_at_construction:
            for part in self.groups:
                self._allocate_states(part)
        ledger.free_many(buffers.INIT_GRADIENT, gradients)

    def _has_room(self, flat_bytes: int) -> bool:
        """__init__, flatten_on_accelerator: the cache was emptied, so what no tensor holds is free."""
        capacity = self.run.capacity_bytes
        return capacity is None or self.run.kernels.one_pool or capacity - self.ledger.level >= flat_bytes

    def _flatten_on_the_host(self, flat_bytes: int, sizes: Collection[int]) -> None:
        """__init__: every parameter goes to the host, is flattened there, and comes back as one tensor."""
        ledger = self.ledger
        ledger.moment = "flattening the parameters on the host"
        placeholders = (PLACEHOLDER_BYTES,) * len(sizes)
        ledger.alloc_many(states.HOST_FLAT, sizes)
        ledger.alloc(buffers.FLATTEN, PLACEHOLDER_BYTES)
        ledger.free_many(states.PARAMETERS, sizes)
        ledger.alloc_many(buffers.FLATTEN, placeholders[1:])
        ledger.alloc(states.HOST_FLAT, flat_bytes)
        ledger.free_many(states.HOST_FLAT, sizes)
        ledger.alloc(states.PARAMETERS, flat_bytes)
        ledger.free(states.HOST_FLAT, flat_bytes)
        ledger.free_many(buffers.FLATTEN, placeholders)

    def _master_on_the_host(self, part: FlatPartition) -> None:
        ledger, e, pinned = self.ledger, self.e, self.zero.offload_optimizer.pin_memory
        if self.run.kernels.one_pool and e == 4:
            ledger.free(buffers.CAST, 4 * part.size)
            ledger.alloc(states.HOST_MASTER, 4 * part.size)
        else:
            ledger.alloc(states.HOST_TRANSIENT, 4 * part.size)
            if not self.run.kernels.one_pool:
                self.copy_to_host(part.size)
            ledger.free(buffers.CAST, e * part.size)
            self.pin(states.HOST_MASTER, 4 * part.size, pinned=pinned, twin_exists=True)
        self.pin(states.HOST_STAGING, e * part.size, pinned=pinned)

    def _gradients_on_the_host(self) -> None:
        pinned = self.zero.offload_optimizer.pin_memory
        largest = self.e * max(self.sizes)
        self.pin(states.HOST_GRADIENT_STAGING, largest, pinned=pinned)
        self.ledger.alloc(buffers.GPU_STAGING, largest)
        for part in self.groups:
            self.pin(states.HOST_GRADIENTS, 4 * part.size, pinned=pinned)

    def _allocate_states(self, part: FlatPartition) -> None:
        term = states.HOST_STATES if self.offload else states.OPTIMIZER_STATES
        for _ in range(self.optimizer.num_states):
            self.ledger.alloc(term, 4 * part.size)

    # Backward.

    def gradient(self, index: int) -> None:
        self._setup_buckets()
        super().gradient(index)
        if self.reduces_in_hooks and (self.zero.stage == 2 or self.boundary):
            self._reduce_into_bucket(index)

    def _setup_buckets(self) -> None:
        """setup_buckets: full size whatever the model's, at the first hook after the last epilogue."""
        if self.buckets_exist or not self.contiguous:
            return
        self.buckets_exist = True
        for _ in range(2 if self.overlap else 1):
            self.ledger.alloc(buffers.REDUCE_BUCKET, self.bucket_bytes)

    def _reduce_into_bucket(self, index: int) -> None:
        """reduce_independent_p_g_buckets_and_remove_grads: the gradient moves into the bucket."""
        numel = self.sizes[index]
        self._held[index] = False
        if self.bucket_elements + numel > self.zero.reduce_bucket_size:
            self._reduce_bucket()
        if self.contiguous and numel <= self.zero.reduce_bucket_size:
            self.ledger.free(states.GRADIENTS, self.e * numel)
        else:
            self.oversized = index if self.contiguous else None
            if self.contiguous and self.offload:
                self.ledger.temporary(states.GRADIENTS, self.e * numel)  # cloned for safety, then the original goes
        self.bucket.append(index)
        self.bucket_elements += numel
        begin = self.offset(index)
        self.bucket_begin = min(self.bucket_begin, begin)
        self.bucket_end = max(self.bucket_end, begin + numel)

    def _reduce_bucket(self) -> None:
        """reduce_ipg_grads: the collective, then owned gradients move into the partition."""
        if not self.bucket:
            return
        self._clear_reduced()
        self._collective()
        for index in self.bucket:
            numel = self.sizes[index]
            separate = not self.contiguous or index == self.oversized
            if self._owns(index):
                self._keep_owned(index, separate=separate)
            elif separate and self.zero.stage == 2 and self.overlap and not self.contiguous:
                self.reduced.append(index)
            elif separate and self.zero.stage == 2:
                self.ledger.free(states.GRADIENTS, self.e * numel)
            elif separate:
                self.leftovers.append(index)  # stage 1 clears them in the epilogue
        self._empty_bucket()

    def _clear_reduced(self) -> None:
        """_clear_previous_reduced_grads."""
        if self.reduced:
            self._free_gradients(self.reduced)
            self.reduced = []

    def _collective(self) -> None:
        """average_tensor: the slices of the bucket, a group of them at a time (allreduce_bucket)."""
        if self.contiguous and not self.zero.reduce_scatter:  # gradient_reduction_w_predivide: in place
            self._reduce_group(self.bucket_elements, 1, own=True)
        elif self.contiguous and self.oversized is not None:
            groups = self.groups_of_oversized(self.oversized, self.bucket_begin, self.bucket_end)
            self._reduce_group(*max((elements, slices) for elements, slices, own in groups), own=False)
            for elements, slices, own in groups:
                if own:
                    self._reduce_group(elements, slices, own=True)
        else:
            self._reduce_group(self.bucket_elements, self._num_slices(), own=True)

    def _reduce_group(self, elements: int, num_slices: int, *, own: bool) -> None:
        """allreduce_bucket: several slices are flattened, and cast where the dtype differs."""
        live: list[tuple[Term, int]] = []
        if num_slices > 1:
            live.append((buffers.FLAT_BUCKET, self.e * elements))
        if self.casts:
            live.append((buffers.COMMUNICATION_COPY, self.c * elements))
        for each in live:
            self.ledger.alloc(*each)
        if own:
            if len(live) > 1:  # allreduce_bucket returns the cast copy, and the flat one goes
                self.ledger.free(*live.pop(0))
            self._take_reduced()
        for each in live:
            self.ledger.free(*each)

    def _take_reduced(self) -> None:
        """What is taken of reduced gradients while their copies live: nothing here."""

    def _num_slices(self) -> int:
        """Tensors that go into one collective: gradients, or in a contiguous bucket what each rank has of it."""
        return self._ranks_in_bucket() if self.contiguous else len(self.bucket)

    def groups_of_oversized(self, index: int, begin: int, end: int) -> list[tuple[int, int, bool]]:
        """allreduce_and_scatter: a group of slices, one a rank, closes once it exceeds the bucket's size.

        Args:
            index: of the gradient that is larger than a bucket.
            begin, end: of what the bucket spans of the flat buffer.

        Returns:
            Of each group its elements, its slices, and whether one is this rank's.
        """
        size, limit = self._partition_of(index).size, self.zero.reduce_bucket_size
        groups: list[tuple[int, int, bool]] = []
        while begin < end:
            first, last = begin // size, min((begin + limit) // size, (end - 1) // size)
            stop = min((last + 1) * size, end)
            groups.append((stop - begin, last + 1 - first, first <= self.run.rank <= last))
            begin = stop
        return groups

    def _ranks_in_bucket(self) -> int:
        """Ranks whose ranges the bucket's gradients touch, as far apart as its first and last one."""
        size = self.partition.size
        return (self.bucket_end - 1) // size - self.bucket_begin // size + 1

    def _keep_owned(self, index: int, *, separate: bool) -> None:
        """copy_grads_in_partition, or its way to the host."""
        ledger, e, numel = self.ledger, self.e, self.sizes[index]
        if self.offload:
            self._to_host(index)
            if separate and self.boundary:
                ledger.free(states.GRADIENTS, e * numel)
            elif separate:
                self.leftovers.append(index)  # async_accumulate_grad_in_cpu_via_gpu leaves it to the epilogue
            return
        if not self.contiguous:
            self.fresh.append(index)
            return
        if not self.gradient_partition_exists:
            self.gradient_partition_exists = True
            ledger.alloc(states.GRADIENT_PARTITION, e * self._owned_elements)
        if separate:
            ledger.free(states.GRADIENTS, e * numel)

    @property
    def _owned_elements(self) -> int:
        """copy_grads_in_partition, total_size: one buffer for the gradients of all groups."""
        return sum([part.owned_elements for part in self.groups])

    def _to_host(self, index: int) -> None:
        ledger, e, numel = self.ledger, self.e, self.sizes[index]
        # Stage 1 reduces only at the boundary, and its micro step counter does not move before.
        if self.accumulates and self.zero.stage == 2 and not self.host_accumulation_exists:
            self.pin(states.HOST_ACCUMULATION, e * numel, pinned=self.zero.offload_optimizer.pin_memory)
        if self.boundary:
            ledger.temporary(buffers.NORM, 8 * self._slice(index))
            if e != 4:
                ledger.temporary(buffers.OFFLOAD_CAST, 4 * self._slice(index))

    def end_backward(self, *, boundary: bool) -> None:
        ledger, e = self.ledger, self.e
        if self.zero.stage == 1 and not boundary:
            return
        ledger.moment = "end of backward, gradient reduction"
        if not self.reduces_in_hooks:
            self._setup_buckets()
            self._reduce_all()
        self._reduce_bucket()
        self._clear_reduced()
        if boundary:
            self._take_updates()
        if self.buckets_exist:
            for _ in range(2 if self.overlap else 1):
                ledger.free(buffers.REDUCE_BUCKET, self.bucket_bytes)
            self.buckets_exist = False
        if self.accumulates and self.offload:
            self.host_accumulation_exists = True
        self._free_gradients(self.leftovers)
        if self.kept:  # by the first micro batch, to whose gradients this one's are added
            self._free_gradients(self.fresh)
        else:
            self.kept = self.fresh
        self.leftovers, self.fresh = [], []
        if self.gradient_partition_exists:
            self.gradient_partition_exists = False
            if self.accumulated_partition_exists:  # added to the first micro batch's, then dropped
                ledger.free(states.GRADIENT_PARTITION, e * self._owned_elements)
            self.accumulated_partition_exists = True

    def _take_updates(self) -> None:
        """What an optimizer makes of reduced gradients before buckets and gradients go: nothing here."""

    # Step.

    def step(self, *, first: bool) -> None:
        ledger = self.ledger
        if self.offload:
            ledger.moment = "optimizer update on the host"
            if first:
                for part in self.groups:
                    self._allocate_states(part)
            return
        ledger.moment = "gradient norm"
        ledger.temporary(buffers.NORM, 8 * max([part.largest_slice for part in self.groups]))
        for part in self.groups:
            self._update(part, first=first)

    def _update(self, part: FlatPartition, *, first: bool) -> None:
        """One group: its gradient in fp32, then the optimizer."""
        ledger = self.ledger
        update = self._step_gradient(part)
        ledger.moment = "optimizer update"
        if first and not self.optimizer.states_at_construction:
            self._allocate_states(part)
        temporaries = self.optimizer.step_temporaries(foreach=self.run.kernels.foreach_optimizers)
        ledger.temporary(buffers.OPTIMIZER_TEMPORARY, 4 * part.size * temporaries)
        ledger.free(buffers.STEP_GRADIENT, update)
        self._release_partition(part)

    def _step_gradient(self, part: FlatPartition) -> int:
        """The fp32 gradient of the update: flattened, cast, and the gradients go; its bytes."""
        ledger, e = self.ledger, self.e
        ledger.moment = "flattening the gradient partition"
        flattens = not part.is_one_tensor
        flat = e * part.size if flattens and e != 4 else 0
        update = 4 * part.size if flattens or e != 4 else 0
        ledger.alloc(buffers.FLAT_GRADIENT, flat)
        ledger.alloc(buffers.STEP_GRADIENT, update)
        ledger.free(buffers.FLAT_GRADIENT, flat)
        if update:  # else the update's gradient is a view of the partition, which lives as long
            self._release_partition(part)
        return update

    def _release_partition(self, part: FlatPartition) -> None:  # noqa: ARG002  # the last group's has all gradients
        if self.accumulated_partition_exists:
            self.ledger.free(states.GRADIENT_PARTITION, self.e * self._owned_elements)
            self.accumulated_partition_exists = False
        self._free_gradients(self.kept)
        self.kept = []

    def _free_gradients(self, indices: list[int]) -> None:
        for index in indices:
            self.ledger.free(states.GRADIENTS, self.e * self.sizes[index])
