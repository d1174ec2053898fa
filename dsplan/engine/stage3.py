"""Stage 3: parameters, gradients and states partitioned; parameters gathered around each submodule.

Source: DeepSpeed 0.19.8 runtime/zero/stage3.py (DeepSpeedZeroOptimizer_Stage3), partition_parameters.py
(zero.Init); function names in the comments are those files'. The model is built under zero.Init.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

from dsplan import buffers, states
from dsplan.engine.base import Engine, Run
from dsplan.engine.coordinator import Change
from dsplan.engine.gathering import GatherStep, gather_steps
from dsplan.ledger import PINNED, Term
from dsplan.operators import PARAMETER_GRADIENT
from dsplan.optimizers import Optimizer, device_optimizer, host_optimizer
from dsplan.units import MIB, ceil_div, round_up

#: stage3.py _constant_buffered_norm2: the norm of an offloaded gradient is taken in parts of this size.
NORM_PART_ELEMENTS = 250_000_000

#: swap_tensor/utils.py MIN_AIO_BYTES: smaller tensors are not written to NVMe.
MIN_SWAP_BYTES = MIB


class Stage3(Engine):
    """Every rank is alike: each parameter is cut into N parts of ⌈n/N⌉ elements."""

    follows_modules = True

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        zero = run.plan.zero
        self.zero = zero
        self.swaps_optimizer = zero.offload_optimizer.device == "nvme"
        self.swaps_parameters = zero.offload_param.device == "nvme"
        self.parts = [ceil_div(numel, run.world_size) for numel in self.sizes]
        self.total = sum(self.parts)
        self.offload = zero.offloads_optimizer
        self.offload_param = zero.offloads_parameters
        self.sub_groups = _sub_groups(self.parts, zero.sub_group_size)
        on_device = (
            int((1 - zero.offload_optimizer.ratio) * len(self.sub_groups)) if self.offload else len(self.sub_groups)
        )
        self.on_device = [index < on_device for index in range(len(self.sub_groups))]
        self.gathers = gather_steps(run.model, zero, run.world_size, run.plan.workload, run.kernels)
        self.num_steps = len(self.gathers)
        self._step_index = 0
        self._pass_index = 0
        self._changes: Iterator[Change] = iter(())  # of the pass under way, a hook each
        self._bucket: list[int] = []
        self._bucket_elements = 0
        self._unswapped_parts: list[int] = []  # small fp32 gradients that stay on the device until the step

    # Initialisation.

    def initialise(self) -> None:
        ledger, e = self.ledger, self.e
        self._build_under_zero_init()
        ledger.moment = "defragmenting the partitions"
        self._flatten_partitions()
        ledger.moment = "fp32 master parameters"
        self._masters()
        ledger.moment = "optimizer states"
        self._initial_gradients()
        ledger.moment = "gradient buffers"
        if self.zero.contiguous_gradients:
            ledger.alloc(buffers.REDUCE_BUCKET, e * self.zero.reduce_bucket_size)
        if self.offload:
            self.pin(states.HOST_GRADIENT_PARTITION, e * self.total, pinned=self.zero.offload_optimizer.pin_memory)
        else:
            ledger.alloc(states.GRADIENT_PARTITION, e * self.total)
        # create_reduce_and_remove_grad_hooks gathers and releases each parameter once.
        ledger.moment = "hooking each parameter"
        largest = max(round_up(numel, self.run.world_size) for numel in self.sizes)
        ledger.alloc(buffers.GATHERED, e * largest)
        if self.offload_param and not self.run.kernels.one_pool:  # the partition is brought to the device first
            ledger.temporary(buffers.GATHERED, e * max(self.parts))
        ledger.free(buffers.GATHERED, e * largest)

    def _build_under_zero_init(self) -> None:
        """zero.Init: each submodule's parameters exist whole until its constructor returns."""
        ledger, e, model = self.ledger, self.e, self.run.model
        host = self.offload_param
        if self.swaps_parameters:
            offload = self.zero.offload_param
            ledger.alloc(states.SWAP_PARAMETERS, e * offload.buffer_count * round_up(offload.buffer_size, 512))
        names = [parameter.name for parameter in model.parameters]
        index = 0
        for name, group in groupby(names, key=lambda n: n.rpartition(".")[0]):
            members = list(range(index, index + len(list(group))))
            index = members[-1] + 1
            for i in members:
                self._construct(buffers.GATHERED, self.sizes[i])
            for i in members:
                if self._swapped(e * self.parts[i]):
                    pass  # written to the file system through the buffers
                elif host:
                    self.pin(_HOST_PARTITION, e * self.parts[i], pinned=self.zero.offload_param.pin_memory)
                else:
                    ledger.alloc(states.PARTITIONED_PARAMETERS, e * self.parts[i])
                ledger.free(buffers.GATHERED, e * self.sizes[i])
            if name.endswith("attn.c_proj") and model.has_mask_buffer:
                mask = model.max_position_embeddings**2
                self._construct(buffers.GATHERED, mask)  # torch.ones, from which torch.tril makes the mask
                ledger.alloc(states.BUFFERS, e * mask)
                ledger.free(buffers.GATHERED, e * mask)

    def _swapped(self, size: int) -> bool:
        """swappable_tensor: files hold what is at least 1 MiB."""
        return self.swaps_parameters and size >= MIN_SWAP_BYTES

    def _construct(self, term: Term, elements: int) -> None:
        """zero_wrapper_for_fp_tensor_constructor: made in fp32 on the device, then cast."""
        ledger, e = self.ledger, self.e
        if e == 4:
            ledger.alloc(term, 4 * elements)
            return
        ledger.alloc(buffers.CAST, 4 * elements)
        ledger.alloc(term, e * elements)
        ledger.free(buffers.CAST, 4 * elements)

    def _flatten_partitions(self) -> None:
        ledger, e = self.ledger, self.e
        sizes = [e * part for part in self.parts]
        if self.swaps_parameters:
            in_cpu = min(self.total, self.zero.offload_param.max_in_cpu)
            self.pin(states.HOST_PARAMETERS, e * in_cpu, pinned=True)
            kept = (size for size in sizes if not self._swapped(size))
            ledger.free_many(self.placed(_HOST_PARTITION, pinned=self.zero.offload_param.pin_memory), kept)
            return
        if self.offload_param:
            # param_groups_fp16_flat_cpu_memory is pinned whatever offload_param.pin_memory says.
            self.pin(states.HOST_PARAMETERS, e * self.total, pinned=True)
            ledger.free_many(self.placed(_HOST_PARTITION, pinned=self.zero.offload_param.pin_memory), sizes)
            return
        ledger.alloc(states.HOST_TRANSIENT, e * self.total)
        ledger.free_many(states.PARTITIONED_PARAMETERS, sizes)
        if not self.run.kernels.one_pool:
            ledger.alloc(states.PARTITIONED_PARAMETERS, e * self.total)
            ledger.free(states.HOST_TRANSIENT, e * self.total)
        else:
            ledger.free(states.HOST_TRANSIENT, e * self.total)
            ledger.alloc(states.PARTITIONED_PARAMETERS, e * self.total)

    def _masters(self) -> None:
        """_create_fp32_partitions: cast, then cloned; the cast copy of the last sub-group dies last."""
        ledger, e = self.ledger, self.e
        if self.swaps_optimizer:
            largest = max(sum(self.parts[i] for i in group) for group in self.sub_groups)
            buffer = 4 * round_up(largest, 256)
            ledger.alloc(states.SWAP_OPTIMIZER, buffer * self.zero.offload_optimizer.buffer_count)
            return
        previous: tuple[Term, int] | None = None
        for group, on_device in zip(self.sub_groups, self.on_device, strict=True):
            elements = sum(self.parts[i] for i in group)
            from_device = not self.offload_param
            if on_device:
                cast, master = buffers.CAST, states.MASTER
                casts = e != 4 or self.offload_param
            else:
                cast, master = states.HOST_TRANSIENT, states.HOST_MASTER_PAGEABLE
                casts = e != 4 or (from_device and not self.run.kernels.one_pool)
                if from_device and e != 4 and not self.run.kernels.one_pool:
                    # A blocking copy to the host arrives in the source's type and is cast there (aten cuda/Copy.cu).
                    ledger.temporary(states.HOST_TRANSIENT, e * elements)
            if casts:
                ledger.alloc(cast, 4 * elements)
                if previous is not None:
                    ledger.free(*previous)
                previous = (cast, 4 * elements)
            ledger.alloc(master, 4 * elements)
        if previous is not None:
            ledger.free(*previous)

    def _initial_gradients(self) -> None:
        ledger = self.ledger
        elements = [sum(self.parts[i] for i in group) for group in self.sub_groups]
        shared = states.HOST_TRANSIENT if self.offload else buffers.INIT_GRADIENT
        ledger.alloc(shared, 4 * max(elements))
        if self.offload and not self.swaps_optimizer:
            for size, on_device in zip(elements, self.on_device, strict=True):
                self.pin(states.HOST_GRADIENTS, 4 * size, pinned=self.zero.offload_optimizer.pin_memory)
                if on_device:
                    ledger.alloc(buffers.STEP_GRADIENT, 4 * size)
                    ledger.free(states.HOST_GRADIENTS, 4 * size)
        elif not self.offload:
            optimizer = device_optimizer(self.run.plan)
            if optimizer.states_at_construction:
                for size in elements:
                    self._states(states.OPTIMIZER_STATES, optimizer, size)
        ledger.free(shared, 4 * max(elements))

    def _states(self, term: Term, optimizer: Optimizer, elements: int) -> None:
        for _ in range(optimizer.num_states):
            self.ledger.alloc(term, 4 * elements)

    # Forward and backward.

    @property
    def _gathering(self) -> GatherStep:
        return self.gathers[self._step_index]

    def begin_forward(self) -> None:
        self._changes = iter(self._gathering.passes[self._pass_index].changes)

    def module(self, kind: int) -> None:  # noqa: ARG002  # hooks come in the order of the trace
        rise, net = next(self._changes)
        if rise or net:
            self._gathered(rise, net)

    def _gathered(self, rise: int, net: int) -> None:
        if self.ledger.detailed:
            self.ledger.event(buffers.GATHERED, rise, 1)
            self.ledger.event(buffers.GATHERED, net - rise, -1)
        else:
            self.ledger.rise_and_settle(rise, net)

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

    def _reduce_bucket(self) -> None:
        """__reduce_and_partition_ipg_grads."""
        ledger, e = self.ledger, self.e
        bucket, self._bucket = self._bucket, []
        elements, self._bucket_elements = self._bucket_elements, 0
        if not bucket:
            return
        in_bucket = self.zero.contiguous_gradients and elements <= self.zero.reduce_bucket_size
        scatters = self.zero.reduce_scatter or not in_bucket
        world = self.run.world_size
        flat = e * sum(self.parts[i] * world for i in bucket)
        copied = scatters and not (len(bucket) == 1 and self.sizes[bucket[0]] % world == 0)
        if copied:
            ledger.alloc(buffers.SCATTER_COPY, flat)
        if self.offload:
            self._to_host(bucket)
        if not in_bucket:
            ledger.free_many(states.GRADIENTS, (e * self.sizes[i] for i in bucket))
        if copied:
            ledger.free(buffers.SCATTER_COPY, flat)

    def _to_host(self, bucket: list[int]) -> None:
        """partition_grads: each partition returns to the device for its norm and its cast."""
        ledger, e = self.ledger, self.e
        one_pool = self.run.kernels.one_pool
        for index in bucket:
            part = self.parts[index]
            if not one_pool:
                ledger.alloc(buffers.GPU_STAGING, e * part)
            if self.boundary:
                ledger.temporary(buffers.NORM, 8 * min(part, NORM_PART_ELEMENTS))
                if self.swaps_optimizer:
                    ledger.alloc(buffers.OFFLOAD_CAST, 4 * part)
                elif e != 4:
                    ledger.temporary(buffers.OFFLOAD_CAST, 4 * part)
            if not one_pool:
                ledger.free(buffers.GPU_STAGING, e * part)
        if self.swaps_optimizer and self.boundary:
            # _swap_out_offload_fp32_gradients writes the large ones; the small ones wait on the device.
            for index in bucket:
                if 4 * self.parts[index] >= MIN_SWAP_BYTES:
                    ledger.free(buffers.OFFLOAD_CAST, 4 * self.parts[index])
                else:
                    self._unswapped_parts.append(index)

    def end_backward(self, *, boundary: bool) -> None:  # noqa: ARG002
        self.ledger.moment = "end of backward, gradient reduction"
        self._reduce_bucket()
        self._gathered(*self._gathering.passes[self._pass_index].leftovers)
        self._pass_index += 1

    # Step.

    def step(self, *, first: bool) -> None:
        ledger, e = self.ledger, self.e
        gathering = self._gathering
        ledger.moment = "releasing the gathered parameters"
        self._gathered(0, gathering.released)
        if not self.offload:
            if self.run.plan.workload.precision == "fp16":
                ledger.moment = "overflow check"
                ledger.alloc(buffers.OVERFLOW, e * self.total)
                ledger.temporary(buffers.OVERFLOW, self.total)
                ledger.free(buffers.OVERFLOW, e * self.total)
            ledger.moment = "gradient norm"
            ledger.temporary(buffers.NORM, 8 * max(self.parts))
        ledger.moment = "optimizer update"
        ledger.free_many(buffers.OFFLOAD_CAST, (4 * self.parts[i] for i in self._unswapped_parts))
        self._unswapped_parts = []
        for group, on_device in zip(self.sub_groups, self.on_device, strict=True):
            self._update(group, first=first, on_device=on_device)
        ledger.moment = "gathering the persistent parameters"
        self._gathered(max(gathering.persistent, 0), gathering.persistent)
        self._step_index += 1
        self._pass_index = 0

    def _update(self, group: list[int], *, first: bool, on_device: bool) -> None:
        elements = sum(self.parts[i] for i in group)
        if on_device:
            self._update_on_device(elements, flattens=len(group) > 1, first=first)
        elif self.swaps_optimizer:
            if first:  # the moments exist in memory until they are swapped out for the first time
                for _ in range(host_optimizer(self.run.plan).num_states):
                    self.ledger.temporary(states.HOST_STATES, 4 * elements)
        elif first:
            self._states(states.HOST_STATES, host_optimizer(self.run.plan), elements)

    def _update_on_device(self, elements: int, *, flattens: bool, first: bool) -> None:
        """_prepare_fp32_grad_for_sub_group flattens (one tensor is a view), then casts (fp32 needs no cast)."""
        ledger, e = self.ledger, self.e
        optimizer = device_optimizer(self.run.plan)
        copies = not self.offload and (e != 4 or flattens)
        flat = e * elements if copies and e != 4 and flattens else 0
        ledger.alloc(buffers.FLAT_GRADIENT, flat)
        if copies:
            ledger.alloc(buffers.STEP_GRADIENT, 4 * elements)
        ledger.free(buffers.FLAT_GRADIENT, flat)
        if first and not optimizer.states_at_construction:
            self._states(states.OPTIMIZER_STATES, optimizer, elements)
        temporaries = optimizer.step_temporaries(foreach=self.run.kernels.foreach_optimizers)
        ledger.temporary(buffers.OPTIMIZER_TEMPORARY, 4 * elements * temporaries)
        if copies:
            ledger.free(buffers.STEP_GRADIENT, 4 * elements)


_HOST_PARTITION = Term(
    "parameter partitions before they are flattened (host)", "e·⌈n/N⌉ each", "partition_parameters.py, pinned", PINNED
)


def _sub_groups(parts: list[int], size: int) -> list[list[int]]:
    """stage3.py _create_fp16_sub_groups: a sub-group closes once it has ``size`` elements."""
    if size >= sum(parts):
        return [list(range(len(parts)))]
    groups: list[list[int]] = []
    current: list[int] = []
    elements = 0
    for index, part in enumerate(parts):
        current.append(index)
        elements += part
        if elements >= size or index == len(parts) - 1:
            groups.append(current)
            current, elements = [], 0
    return groups
