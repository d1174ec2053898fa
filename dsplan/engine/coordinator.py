"""Coordinator: which parameters stage 3 has gathered when, as a simulation of DeepSpeed's own rules.

Source: DeepSpeed 0.19.8 runtime/zero/partitioned_param_coordinator.py (fetch_sub_module,
release_sub_module, __params_to_release, reset_step) and partition_parameters.py
(AllGatherHandle, AllGatherCoalescedHandle, _allgather_params_coalesced). No closed form is exact here:
prefetching restarts at every submodule, and what it skips is protected from release.

The result does not depend on the batch, so it is computed once per model, configuration and world size.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from dataclasses import dataclass, field
from functools import lru_cache

from dsplan.engine.hooks import Change, Mark, Module
from dsplan.kernels import Kernels
from dsplan.model import ModelShape
from dsplan.partition import parameter_sizes
from dsplan.tape import ENTER, ENTER_BACKWARD, LEAVE_BACKWARD
from dsplan.units import ceil_div, round_up
from dsplan.zero import ZeroConfig

__all__ = ["Change", "Coordinator", "Mark", "Module", "persistent_parameters"]

NEVER = -(10**10)
UNASKED = 10**18


@dataclass(slots=True)
class Batch:
    """One coalesced all-gather: its flat buffer lives until its last parameter has been waited for.

    ``staged_bytes``: the partition's copy from the host that a collective of one parameter holds until it is waited
    for (torch/csrc/distributed/c10d/ProcessGroupNCCL.cpp, stashed_for_allocator_safety_). Several are joined first.
    ``shape``: its parameters counted from the first, once somebody has asked.
    """

    parameters: list[int]
    flat_bytes: int
    outstanding: int
    split: bool = False
    staged_bytes: int = 0
    shape: tuple[int, ...] = ()


@dataclass(slots=True)
class Pass:
    """State that lasts for one forward and backward pass.

    ``kind`` is that of the hook under way. ``least_room``, ``most_room``: elements below the limit of what lives, where
    prefetching asked for them.
    """

    step: int = 0
    kind: int = ENTER
    least_room: int = UNASKED
    most_room: int = -UNASKED
    available_elements: int = 0
    queue: deque[tuple[int, int]] = field(default_factory=deque)
    fetched_for: dict[int, int] = field(default_factory=dict)


class Coordinator:
    """Replays passes; ``changes`` of a pass are aligned with its hooks.

    Sizes: a gathered parameter alone takes N·⌈n/N⌉ elements; several together take a flat buffer of
    Σ N·⌈n/N⌉ and, once the first is needed, n elements each. One rank gathers nothing unless the
    partitions are on the host.
    """

    def __init__(
        self, model: ModelShape, zero: ZeroConfig, world_size: int, element_bytes: int, kernels: Kernels
    ) -> None:
        self.zero = zero
        self.world_size = world_size
        self.e = element_bytes
        self.kernels = kernels
        self.sizes = parameter_sizes(model)
        padded = {numel: round_up(numel, world_size) for numel in set(self.sizes)}
        self.padded = [padded[numel] for numel in self.sizes]
        self.persistent = persistent_parameters(model, zero)
        self.copies_from_host = zero.offloads_parameters and not kernels.one_pool
        self.gathers = world_size > 1 or self.copies_from_host
        self.storage = [0] * len(self.sizes)  # bytes of each gathered parameter; 0 when partitioned
        self.status = [0] * len(self.sizes)  # 0 partitioned, 1 in flight, 2 available
        self.active: list[set[int]] = [set() for _ in self.sizes]  # submodules that use each parameter now
        self.in_flight: dict[int, Batch] = {}
        self.saved: set[int] = set()  # gathered parameters whose storage autograd holds too
        self.detached: dict[int, int] = {}  # bytes of those that were released and that autograd alone holds
        #: (position, parameters, bytes) of the last pass: what was forgotten at which mark.
        self.forgotten: list[tuple[int, tuple[int, ...], int]] = []
        self.level = 0
        self.rise = 0
        self._release_cache: dict[tuple[int, int], frozenset[int]] = {}
        self._trace: list[Module] | None = None
        self._recording: list[Module] = []
        self._uses: dict[int, list[int]] = {}
        self._queue: list[tuple[int, int]] = []  # every use of a parameter in the trace
        self._bytes_of: dict[int, int] = {}
        self._elements_before: list[int] = [0]
        self._in_backward: dict[int, Module] = {}

    # One pass.

    def run(self, marks: list[Mark], saving: frozenset[int] = frozenset()) -> list[Change]:
        """One forward and backward; the first call records the trace, later ones prefetch by it.

        ``saving`` are the positions of the marks at which autograd has saved what the module's backward needs.
        """
        if self._trace is None and self._recording:
            self._complete_trace()
        state = Pass()
        if self._trace is not None:
            state.queue = deque(self._queue)
        self.forgotten = []
        return self._run(marks, 0, len(marks), saving, state)

    def _run(self, marks: list[Mark], start: int, end: int, saving: frozenset[int], state: Pass) -> list[Change]:
        changes: list[Change] = []
        recording, most = self._trace is None, self.zero.stage3_max_live_parameters
        for position, (kind, module) in enumerate(marks if end - start == len(marks) else marks[start:end], start):
            self.rise = level = self.level
            state.kind = kind
            if kind in (ENTER, ENTER_BACKWARD):
                if recording:
                    self._recording.append(module)
                if kind == ENTER_BACKWARD:
                    self._in_backward[id(module)] = module
                if module.parameters or recording:
                    self._fetch(module, state)
                else:
                    if state.queue:
                        room = most - state.available_elements
                        if room > 0:
                            self._prefetch((), state)
                        elif room < state.least_room or room > state.most_room:
                            _note(room, state)
                    state.step += 1
            else:
                if position in saving:
                    self.saved.update(module.saved)
                if kind == LEAVE_BACKWARD:
                    self._in_backward.pop(id(module), None)
                    self._forget(module, position)
                self._release_module(module, state)
            changes.append((self.rise - level, self.level - level))
        return changes

    def leftovers(self) -> Change:
        """release_backward_leftovers: modules whose inputs carry no gradient never left their backward."""
        self.rise = start = self.level
        for module in self._in_backward.values():
            for parameter in module.parameters:
                self.active[parameter].clear()
                if parameter not in self.persistent:
                    self._release(parameter)
        self._in_backward.clear()
        return self.rise - start, self.level - start

    def partition_all(self) -> int:
        """The optimizer's step starts by releasing everything; returns the change in bytes."""
        start = self.level
        for parameter in list(self.in_flight):
            self._wait(parameter)
        for users in filter(None, self.active):
            users.clear()
        for parameter in [parameter for parameter, status in enumerate(self.status) if status == 2]:
            self._release(parameter)
        return self.level - start

    def gather_persistent(self) -> int:
        """The step ends by gathering what stays resident; returns the change in bytes."""
        start = self.level
        status, padded = self.status, self.padded
        for parameter in self.persistent:
            if status[parameter] == 0:
                status[parameter] = 2
                self._allocate_parameter(parameter, padded[parameter])
        return self.level - start

    def invalidate(self) -> int:
        """The step's end for secondary partitions, of which there are none here; returns the change in bytes."""
        return 0

    def state(self) -> tuple[int, ...]:
        """What is gathered, parameter by parameter: a pass that starts from the same state is the same."""
        return tuple(self.storage)

    # Rules.

    def _fetch(self, module: Module, state: Pass) -> None:
        wanted = module.parameters
        if wanted:
            missing = [parameter for parameter in wanted if self.status[parameter] == 0]
            if missing:
                self._gather(missing, state)
            in_flight, user = self.in_flight, id(module)
            for parameter in wanted:
                self.active[parameter].add(user)
                if parameter in in_flight:
                    self._wait(parameter)
        if self._trace is not None:
            self._prefetch(wanted, state)
        state.step += 1

    def _prefetch(self, wanted: tuple[int, ...], state: Pass) -> None:
        fetched_for, queue = state.fetched_for, state.queue
        if not queue:
            return
        if wanted:
            pending = {p for p in wanted if fetched_for.get(p, NEVER) < state.step}
            taken: set[int] = set()
            while queue and len(taken) < len(pending):
                parameter, step = queue.popleft()
                fetched_for[parameter] = step
                taken.add(parameter)
            if not queue:
                return
        zero = self.zero
        room = zero.stage3_max_live_parameters - state.available_elements
        if room < state.least_room or room > state.most_room:
            _note(room, state)
        budget = min(room, zero.stage3_prefetch_bucket_size)
        if budget <= 0:
            return
        batch: dict[int, None] = {}  # in their order
        elements = 0
        status, sizes = self.status, self.sizes
        while queue and elements < budget:
            parameter, step = queue.popleft()
            fetched_for[parameter] = step  # the latest so far: the queue is in the order of the trace
            if status[parameter] == 0 and parameter not in batch:
                batch[parameter] = None
                elements += sizes[parameter]
        if batch:
            self._gather(list(batch), state)

    def _gather(self, parameters: list[int], state: Pass) -> None:
        parameters = sorted(parameters)
        for parameter in parameters:
            state.available_elements += self.sizes[parameter]
            self.status[parameter] = 1
        if self.world_size == 1:
            batch = Batch(parameters, 0, len(parameters), split=True)
            for parameter in parameters:
                if self.gathers:
                    self._allocate_parameter(parameter, self.sizes[parameter])
        elif len(parameters) == 1:
            batch = Batch(parameters, 0, 1, split=True)
            self._allocate_parameter(parameters[0], self.padded[parameters[0]])
            if self.copies_from_host:
                batch.staged_bytes = self._bytes(ceil_div(self.sizes[parameters[0]], self.world_size))
                self._change(batch.staged_bytes)
        else:
            batch = Batch(parameters, self._bytes(sum([self.padded[p] for p in parameters])), len(parameters))
            self._change(batch.flat_bytes)
            if self.copies_from_host:
                self._temporary(sum(ceil_div(self.sizes[p], self.world_size) for p in parameters))
        for parameter in parameters:
            self.in_flight[parameter] = batch

    def _wait(self, parameter: int) -> None:
        batch = self.in_flight.pop(parameter)
        if batch.staged_bytes:
            self._change(-batch.staged_bytes)
        if not batch.split:
            batch.split = True
            for other in batch.parameters:
                self._allocate_parameter(other, self.sizes[other])
        status = self.status
        for other in batch.parameters:
            if status[other] == 1:
                status[other] = 2
        batch.outstanding -= 1
        if batch.outstanding == 0 and batch.flat_bytes:
            self._change(-batch.flat_bytes)

    def _release_module(self, module: Module, state: Pass) -> None:
        if not module.parameters:
            return
        releasable = frozenset(module.parameters) if self._trace is None else self._releasable(module, state)
        user = id(module)
        for parameter in module.parameters:
            users = self.active[parameter]
            users.discard(user)
            if parameter in releasable:
                if self.status[parameter] == 2 and not users:
                    state.available_elements -= self.sizes[parameter]
                self._release(parameter)

    def _releasable(self, module: Module, state: Pass) -> frozenset[int]:
        # DeepSpeed caches the answer by module and step for the life of the run (functools.lru_cache).
        key = (id(module), state.step)
        found = self._release_cache.get(key)
        if found is None:
            persistent, fetched_for, step = self.persistent, state.fetched_for, state.step
            found = self._release_cache[key] = frozenset(
                [
                    parameter
                    for parameter in module.parameters
                    if parameter not in persistent
                    and fetched_for.get(parameter, NEVER) <= step
                    and not self._reused_soon(parameter, step)
                ]
            )
        return found

    def _reused_soon(self, parameter: int, step: int) -> bool:
        uses = self._uses[parameter]
        position = bisect_left(uses, step)
        if position == len(uses):
            return False
        use = uses[position]
        distance = self._elements_before[use] - self._elements_before[step]
        return distance < self.zero.stage3_max_reuse_distance

    def _release(self, parameter: int) -> None:
        if self.status[parameter] == 2 and not self.active[parameter]:
            self.status[parameter] = 0
            if parameter in self.saved:
                self.saved.discard(parameter)
                self.detached[parameter] = self.storage[parameter]
            else:
                self._change(-self.storage[parameter])
            self.storage[parameter] = 0

    def _forget(self, module: Module, position: int) -> None:
        size = 0
        for parameter in module.saved:
            self.saved.discard(parameter)
            size += self.detached.pop(parameter, 0)
        if size:
            self._change(-size)
            self.forgotten.append((position, module.saved, size))

    def _complete_trace(self) -> None:
        self._trace = self._recording
        elements = 0
        self._elements_before = [0]
        for step, module in enumerate(self._trace):
            for parameter in module.parameters:
                elements += self.sizes[parameter]
                self._uses.setdefault(parameter, []).append(step)
            self._elements_before.append(elements)
            if module.parameters:
                self._queue += [(parameter, step) for parameter in sorted(module.parameters)]

    # Bytes.

    def _bytes(self, elements: int) -> int:
        found = self._bytes_of.get(elements)
        if found is None:
            found = self._bytes_of[elements] = self.kernels.rounded(self.e * elements)
        return found

    def _allocate_parameter(self, parameter: int, elements: int) -> None:
        if not self.gathers:
            return
        self.storage[parameter] = self._bytes(elements)
        self._change(self.storage[parameter])

    def _temporary(self, elements: int) -> None:
        size = self._bytes(elements)
        self._change(size)
        self._change(-size)

    def _change(self, size: int) -> None:
        self.level += size
        if self.level > self.rise:  # noqa: PLR1730  # nothing is done so often
            self.rise = self.level


def _note(room: int, state: Pass) -> None:
    state.least_room, state.most_room = min(state.least_room, room), max(state.most_room, room)


@lru_cache(maxsize=256)
def persistent_parameters(model: ModelShape, zero: ZeroConfig) -> frozenset[int]:
    """Parameters that stay gathered between steps (parameter_offload.py mark_persistent_parameters)."""
    sizes, most = parameter_sizes(model), zero.stage3_param_persistence_threshold
    small = [index for index, numel in enumerate(sizes) if numel <= most]
    if sum([sizes[index] for index in small]) <= zero.stage3_model_persistence_threshold:
        return frozenset(small)
    total = 0
    found = []
    for index in small:
        if sizes[index] + total <= zero.stage3_model_persistence_threshold:
            found.append(index)
            total += sizes[index]
    return frozenset(found)
