"""Stage 3: parameters, gradients and states partitioned; parameters gathered around each submodule.

Source: DeepSpeed 0.19.8 runtime/zero/stage3.py (DeepSpeedZeroOptimizer_Stage3), partition_parameters.py
(zero.Init); function names in the comments are those files'. The model is built under zero.Init.
"""

from __future__ import annotations

from itertools import count, groupby
from operator import itemgetter

from dsplan import buffers, states
from dsplan.engine.base import Run, tied_elements
from dsplan.engine.coordinator import persistent_parameters
from dsplan.engine.gathering import GatherStep, gather_steps
from dsplan.engine.secondary import secondary_elements
from dsplan.engine.stage3_swapping import HOST_PARTITION, Stage3Swapping, sub_groups
from dsplan.engine.stretches import NOTHING, Runs, together
from dsplan.ledger import Term
from dsplan.model import ModelShape, Parameter
from dsplan.optimizers import Optimizer, backup_optimizer, device_optimizer, host_optimizer
from dsplan.partition import parameter_sizes
from dsplan.sizes import Sizes
from dsplan.tape import GRADIENT, PRODUCT
from dsplan.units import ceil_div, round_up


class Stage3(Stage3Swapping):
    """Every rank is alike: each parameter is cut into N parts of ⌈n/N⌉ elements."""

    follows_modules = True
    #: Whether the step's temporaries on the host count: has_overflow's of the whole gradient partition, and the cast of
    #: the updated parameters on their way to the device. Older releases made them smaller.
    counts_host_temporaries = True

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        zero = run.plan.zero
        self.sub_groups = self._sub_groups()
        on_device = (
            int((1 - zero.offload_optimizer.ratio) * len(self.sub_groups)) if self.offload else len(self.sub_groups)
        )
        self.on_device = [index < on_device for index in range(len(self.sub_groups))]
        self.swapped_gradients = frozenset([i for group in self.sub_groups if self._swaps(group) for i in group])
        self.gathers = self._gather_steps()
        self.num_steps = len(self.gathers)
        self._step_index = 0
        self._pass_index = 0
        self._pass = self.gathers[0].passes[0]  # the one under way
        self._next = 0  # hook of it
        self._position = 0  # the same, where autograd holds weights
        # Weights that autograd alone holds: where each goes, of how many bytes, and what has gone before that.
        self._saved: dict[int, int] = {}
        self._saved_bytes: dict[int, int] = {}
        self._forgotten: dict[int, int] = {}

    def _gather_steps(self) -> tuple[GatherStep, ...]:
        run = self.run
        return gather_steps(run.model, self.zero, run.world_size, run.plan.workload, run.kernels)

    def _sub_groups(self) -> list[list[int]]:
        """Indices of the parameters of each sub-group: here of one group of parameters, with all of them."""
        return sub_groups(self.parts, self.zero.sub_group_size)

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
            ledger.alloc(buffers.REDUCE_BUCKET, self.c * self.zero.reduce_bucket_size)
        if self.offload:
            self.pin(states.HOST_GRADIENT_PARTITION, self.g * self.total, pinned=self.zero.offload_optimizer.pin_memory)
        else:
            ledger.alloc(states.GRADIENT_PARTITION, self.g * self.total)
        # create_reduce_and_remove_grad_hooks gathers and releases each parameter once.
        ledger.moment = "hooking each parameter"
        largest = round_up(max(self.sizes), self.run.world_size)
        ledger.alloc(buffers.GATHERED, e * largest)
        if self.offload_param and not self.run.kernels.one_pool:  # the partition is brought to the device first
            ledger.temporary(buffers.GATHERED, e * max(self.parts))
        ledger.free(buffers.GATHERED, e * largest)

    def _build_under_zero_init(self) -> None:
        """zero.Init: each submodule's parameters exist whole until its constructor returns."""
        ledger, model = self.ledger, self.run.model
        self._take_swap_buffers()
        if self.blocks_are_alike and not self.offload_param and not ledger.detailed:
            layers = model.num_layers
            self._build_modules(model.embedding_parameters)
            rise, net = ledger.effect(lambda: self._build_modules(model.block_parameters))
            ledger.rise_and_settle(rise + max((layers - 1) * net, 0), layers * net)
            self._build_modules(model.head_parameters)
        else:
            self._build_modules(model.parameters)
        self._tie()

    def _tie(self) -> None:
        """A head with a weight of its own, which goes once it is tied."""
        ledger, e = self.ledger, self.e
        tied = tied_elements(self._gathered_model)
        if not tied:
            return
        self._construct_and_partition([tied])
        part = e * ceil_div(tied, self.run.world_size)
        for secondary in secondary_elements([tied], self.zero, self.run.world_size):
            ledger.free(buffers.GATHERED, e * secondary)
        if self._swapped(part):
            pass
        elif self.offload_param:
            ledger.free(self.placed(HOST_PARTITION, pinned=self.zero.offload_param.pin_memory), part)
        else:
            ledger.free(states.PARTITIONED_PARAMETERS, part)

    def _build_modules(self, parameters: tuple[Parameter, ...]) -> None:
        """The submodules that own ``parameters``."""
        ledger, e, model = self.ledger, self.e, self.run.model
        for name, group in groupby(parameters, key=lambda parameter: parameter.name.rpartition(".")[0]):
            self._construct_and_partition([parameter.numel for parameter in group])
            if name.endswith("attn.c_proj") and model.has_mask_buffer:
                mask = model.max_position_embeddings**2
                self._construct(buffers.GATHERED, mask)  # torch.ones, from which torch.tril makes the mask
                ledger.alloc(states.BUFFERS, e * mask)
                ledger.free(buffers.GATHERED, e * mask)

    def _construct_and_partition(self, sizes: list[int]) -> None:
        """zero.Init, _post_init_method: the parameters of one submodule, of which the rank's parts stay."""
        for numel in sizes:
            self._construct(buffers.GATHERED, numel)
        self._partition(sizes)

    def _partition(self, sizes: list[int]) -> None:
        """_partition: of parameters that are there whole the rank's parts stay."""
        ledger, e = self.ledger, self.e
        for numel, secondary in zip(sizes, secondary_elements(sizes, self.zero, self.run.world_size), strict=True):
            ledger.alloc(buffers.GATHERED, e * secondary)  # of hpZ: first, and gathered from it, so told with it
            part = e * ceil_div(numel, self.run.world_size)
            if self._swapped(part):
                pass  # written to the file system through the buffers
            elif self.offload_param:
                self.pin(HOST_PARTITION, part, pinned=self.zero.offload_param.pin_memory)
            else:
                ledger.alloc(states.PARTITIONED_PARAMETERS, part)
            ledger.free(buffers.GATHERED, e * numel)

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
        if self.offload_param:
            self._flatten_on_host()
            return
        sizes = self.parts.times(e) if isinstance(self.parts, Sizes) else [e * part for part in self.parts]
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
            largest = max(self.elements_of(group) for group in self.sub_groups)
            buffer = 4 * round_up(largest, 256)
            ledger.alloc(states.SWAP_OPTIMIZER, buffer * self.zero.offload_optimizer.buffer_count)
        previous: tuple[Term, int] | None = None
        copied = 0  # the most that is cast on its way from the device to the host, in elements
        for group, on_device, on_drive in zip(self.sub_groups, self.on_device, self.on_drive, strict=True):
            elements = self.elements_of(group)
            from_device = not self.offload_param and not self.run.kernels.one_pool
            if self._swaps(group):
                copied = max(copied, elements) if from_device else 0  # once all other groups have their masters
                if on_drive:
                    ledger.temporary(states.HOST_TRANSIENT, 4 * elements)
                continue
            if on_drive:  # read straight into the master
                ledger.alloc(states.MASTER if on_device else states.HOST_MASTER_PAGEABLE, 4 * elements)
                continue
            if on_device:
                cast, master = buffers.CAST, states.MASTER
                casts = e != 4 or self.offload_param
                if e != 4 and self.offload_param and not self.run.kernels.one_pool:
                    ledger.temporary(states.HOST_TRANSIENT, 4 * elements)  # cast before it goes to the device
            else:
                cast, master = states.HOST_TRANSIENT, states.HOST_MASTER_PAGEABLE
                casts = e != 4 or from_device
            if casts:
                ledger.alloc(cast, 4 * elements)
                if not on_device and from_device:
                    self.copy_to_host(elements)
                if previous is not None:
                    ledger.free(*previous)
                previous = (cast, 4 * elements)
            ledger.alloc(master, 4 * elements)
            self._made_master(group)
        if previous is not None:
            ledger.free(*previous)
        self.copy_to_host(copied)

    def _made_master(self, group: list[int]) -> None:
        """What an optimizer makes beside the fp32 parameters of a sub-group: nothing here."""

    def _initial_gradients(self) -> None:
        ledger = self.ledger
        elements = [self.elements_of(group) for group in self.sub_groups]
        shared = states.HOST_TRANSIENT if self.offload else buffers.INIT_GRADIENT
        ledger.alloc(shared, 4 * max(elements))
        if self.offload:
            for group, size, on_device in zip(self.sub_groups, elements, self.on_device, strict=True):
                if self._swaps(group):
                    continue
                self.pin(states.HOST_GRADIENTS, 4 * size, pinned=self.zero.offload_optimizer.pin_memory)
                if on_device:
                    ledger.alloc(buffers.STEP_GRADIENT, 4 * size)
                    ledger.free(states.HOST_GRADIENTS, 4 * size)
        else:
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
        one = self._pass = self._gathering.passes[self._pass_index]
        self._next = self._position = 0
        self._saved = {parameter: position for position, parameters, _ in one.forgotten for parameter in parameters}
        self._saved_bytes = {position: size for position, _, size in one.forgotten}

    def blocks_at_once(self, layers: range, calls: tuple[tuple[int, int], ...]) -> Runs | None:
        """As the engine's: the gathering of each block is known, and buckets are reduced a kind at a time."""
        if type(self) is not Stage3 or self._saved or any(kind == PRODUCT for kind, _ in calls):
            return None
        order = tuple([index for kind, index in calls if kind == GRADIENT])
        runs = self.buckets_at_once(layers, order) if order else None
        if order and runs is None:
            return None
        hooks = len(calls) - 1 - len(order)
        gathered = self._pass.of_blocks(self._next, len(layers), hooks)
        self._next += len(layers) * hooks
        if runs is None:
            return [(times, (*each, NOTHING)) for times, each in gathered]
        # Where each call's effect is among those of the gradients, what follows them, and those of the hooks.
        gradients, gathers = count(), count(len(order) + 1)
        places = [next(gradients if kind == GRADIENT else gathers) for kind, _ in calls[:-1]]
        in_order = itemgetter(*places, len(order))
        return [(times, in_order((*each, *hooked))) for times, each, hooked in together(runs, gathered)]

    def gradient(self, index: int) -> None:
        if self._saved:
            self._forget_weights(index)
        super().gradient(index)

    def _forget_weights(self, index: int) -> None:
        """A module's first gradient: what its nodes had saved is gone."""
        position = self._saved.get(index, -1)
        size = self._saved_bytes.pop(position, 0) if position >= self._position else 0
        if size:
            self._gathered(0, -size)
            self._forgotten[position] = size

    def module(self, kind: int) -> None:  # noqa: ARG002  # hooks come in the order of the trace
        rise, net = self._pass.changes[self._next]
        self._next += 1
        if self._saved:
            net += self._forgotten.pop(self._position, 0)
            self._position += 1
        if rise or net:
            self._gathered(rise, net)

    def _gathered(self, rise: int, net: int) -> None:
        if self.ledger.detailed:
            self.ledger.event(buffers.GATHERED, rise, 1)
            self.ledger.event(buffers.GATHERED, net - rise, -1)
        else:
            self.ledger.rise_and_settle(rise, net)

    def end_backward(self, *, boundary: bool) -> None:  # noqa: ARG002
        self.ledger.moment = "end of backward, gradient reduction"
        self._reduce_bucket()
        self._gathered(*self._gathering.passes[self._pass_index].leftovers)
        self._pass_index += 1

    # Step.

    def step(self, *, first: bool) -> None:
        ledger = self.ledger
        gathering = self._gathering
        ledger.moment = "releasing the gathered parameters"
        self._gathered(max(gathering.released, 0), gathering.released)
        if self.run.plan.workload.precision == "fp16" and (self.counts_host_temporaries or not self.offload):
            ledger.moment = "overflow check"
            check = states.HOST_OVERFLOW if self.offload else buffers.OVERFLOW
            ledger.alloc(check, self.g * self.total)
            ledger.temporary(check, self.total)
            ledger.free(check, self.g * self.total)
        self._take_updates()
        if not self.offload:
            ledger.moment = "gradient norm"
            ledger.temporary(buffers.NORM, 8 * max(self.parts))
        ledger.moment = "optimizer update"
        ledger.free_many(buffers.OFFLOAD_CAST, (4 * self.parts[i] for i in self._unswapped_parts))
        self._unswapped_parts = []
        for group, on_device in zip(self.sub_groups, self.on_device, strict=True):
            self._update(group, first=first, on_device=on_device)
        ledger.moment = "gathering the persistent parameters"
        staged = self._staged() if gathering.persistent > 0 else ()
        ledger.alloc_many(buffers.GATHERED, staged)
        self._gathered(max(gathering.persistent, 0), gathering.persistent)
        ledger.free_many(buffers.GATHERED, staged)
        self._gathered(0, gathering.invalidated)
        self._step_index += 1
        self._pass_index = 0

    def _staged(self) -> tuple[int, ...]:
        """Bytes of the partitions that _allgather_params_coalesced brings to the device while it gathers them."""
        run = self.run
        if run.world_size == 1 or not self.offload_param or run.kernels.one_pool:
            return ()
        sizes = parameter_sizes(self._gathered_model)
        persistent = sorted(persistent_parameters(self._gathered_model, self.zero))
        return tuple([self.e * ceil_div(sizes[index], run.world_size) for index in persistent])

    @property
    def _gathered_model(self) -> ModelShape:
        """Whose parameters are gathered."""
        return self.run.model

    def _take_updates(self) -> None:
        """What an optimizer makes of accumulated gradients before their norm is taken: nothing here."""

    def _update(self, group: list[int], *, first: bool, on_device: bool) -> None:
        elements = self.elements_of(group)
        if on_device:
            self._update_on_device(elements, flattens=len(group) > 1, first=first)
            return
        ledger, optimizer = self.ledger, host_optimizer(self.run.plan)
        swaps = self._swaps(group)
        leaving = [4 * elements] * (optimizer.num_states if first and swaps else 0)
        if first and not swaps:
            self._states(states.HOST_STATES, optimizer, elements)
        ledger.alloc_many(states.HOST_STATES, leaving)  # in memory until they are swapped out for the first time
        casts = self.counts_host_temporaries and self.e != 4 and not self.offload_param
        if casts and not self.run.kernels.one_pool:
            # _reassign_or_swap_out_partitioned_parameters: what goes to the device is cast on the host first.
            ledger.temporary(states.HOST_CAST, self.e * elements)
        ledger.free_many(states.HOST_STATES, leaving)

    def _update_on_device(self, elements: int, *, flattens: bool, first: bool) -> None:
        """_prepare_fp32_grad_for_sub_group flattens (one tensor is a view), then casts (fp32 needs no cast)."""
        ledger, g = self.ledger, self.g
        optimizer = backup_optimizer() if self.offload else device_optimizer(self.run.plan)
        copies = not self.offload and (g != 4 or flattens)
        flat = g * elements if copies and g != 4 and flattens else 0
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
