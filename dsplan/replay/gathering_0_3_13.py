"""What stage 3 of DeepSpeed 0.3.13 had gathered when: its rules for fetching, prefetching and releasing parameters.

Source: DeepSpeed v0.3.13 (March 2021) runtime/zero/stage3.py (PrefetchCoordinator, PartitionedParameterCoordinator)
and partition_parameters.py (_allgather_param, _partition_param, Init). What differs from 0.19.8
(``dsplan.engine.coordinator``):

- every parameter is gathered by itself, by a single rank too;
- a prefetch is started only while none is on its way, and only below ``stage3_max_live_parameters``: about one bucket
  runs ahead, where today each submodule adds another until that limit is reached; it takes one parameter at least;
- a submodule is kept when it is used again within ``stage3_max_reuse_distance``, whatever prefetching skips;
- torch's own ``F.linear`` is back once ``zero.Init`` is left, so autograd keeps the gathered weight from forward to
  backward; what the backward gathers comes on top (``memory_efficient_linear`` stays in place since v0.3.14, #881).
"""

from __future__ import annotations

from dsplan.engine.coordinator import Change, Mark, Module
from dsplan.engine.gathering import LONGEST_START, GatherPass, GatherStep, _marks
from dsplan.kernels import Kernels
from dsplan.model import ModelShape
from dsplan.replay.projections import Separated, hooks, together
from dsplan.tape import ENTER, ENTER_BACKWARD, LEAVE
from dsplan.units import round_up
from dsplan.workload import Workload
from dsplan.zero import ZeroConfig

NOT_AVAILABLE, IN_FLIGHT, AVAILABLE = range(3)
#: stage3.py get_reuse_distance_in_numel: what is not used again.
NEVER_AGAIN = 10**12

_LINEAR = ("c_attn", "c_proj", "c_fc", "lm_head", "key", "query", "value")
_BLOCKS = "transformer.h."


def old_gather_steps(
    model: ModelShape,
    zero: ZeroConfig,
    world_size: int,
    workload: Workload,
    kernels: Kernels,
    *,
    autograd_keeps: bool,
    separated: Separated | None = None,
) -> tuple[GatherStep, ...]:
    """As :func:`dsplan.engine.gathering.gather_steps`, by the rules above; one micro batch a step.

    ``separated``: the parameters where query, key and value are layers of their own.
    """
    without_batch = Workload(sequence_length=1, activation_checkpointing=workload.activation_checkpointing)
    separated = separated or together(model)
    coordinator = _Coordinator(
        zero,
        world_size,
        workload,
        kernels=kernels,
        sizes=separated.sizes,
        hooks=hooks(_marks(model, without_batch, kernels), separated),
        autograd_keeps=autograd_keeps,
    )
    steps = []
    for _ in range(LONGEST_START):
        one = GatherPass(changes=tuple(coordinator.run()), leftovers=coordinator.partition_all())
        steps.append(GatherStep(passes=(one,), released=0, persistent=coordinator.gather_persistent()))
    return tuple(steps)


class _Storage:
    """The memory of one gathered parameter, with how many hold it: the parameter, and autograd."""

    __slots__ = ("holders", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        self.holders = 1


class _Coordinator:
    """Replays passes: the first records the trace, later ones prefetch by it."""

    def __init__(
        self,
        zero: ZeroConfig,
        world_size: int,
        workload: Workload,
        *,
        kernels: Kernels,
        sizes: tuple[int, ...],
        hooks: list[list[Mark]],
        autograd_keeps: bool,
    ) -> None:
        self.zero = zero
        self.hooks = hooks
        self.autograd_keeps = autograd_keeps
        self.checkpoints = workload.activation_checkpointing != "none"
        self.sizes = sizes
        self.bytes = [
            round_up(workload.element_bytes * round_up(numel, world_size), kernels.block_bytes) for numel in sizes
        ]
        self.persistent = [
            index for index, numel in enumerate(sizes) if numel < zero.stage3_param_persistence_threshold
        ]
        self.persists = frozenset(self.persistent)
        self.status = [NOT_AVAILABLE] * len(sizes)
        self.data: list[_Storage | None] = [None] * len(sizes)
        self.saved: dict[str, list[_Storage]] = {}
        self.active = [0] * len(sizes)
        self.in_flight: list[int] = []
        self.available = 0
        self.step = 0
        self.trace = [module for marks in hooks for kind, module in marks if kind in (ENTER, ENTER_BACKWARD)]
        self.traced = False
        self.last_step: dict[int, int] = {}
        self.distances: dict[int, int] = {}
        self.elements_before = [0]
        for module in self.trace:
            self.elements_before.append(self.elements_before[-1] + sum(sizes[p] for p in module.parameters))
        self.level = self.rise = 0

    def run(self) -> list[Change]:
        """One forward and backward: the change in bytes at each hook."""
        changes: list[Change] = []
        self.step = 0
        in_backward = False
        for marks in self.hooks:
            self.rise = start = self.level
            for kind, module in marks:
                in_backward = in_backward or kind == ENTER_BACKWARD
                if kind in (ENTER, ENTER_BACKWARD):
                    self._enter(module)
                else:
                    if kind == LEAVE:
                        self._save(module, in_backward=in_backward)
                    else:
                        self._forget(module)
                    self._release_module(module)
            changes.append((self.rise - start, self.level - start))
        self.traced = True
        return changes

    def partition_all(self) -> Change:
        """_partition_all_parameters: after the backward nothing stays, what persists neither."""
        self.rise = start = self.level
        for parameter, status in enumerate(self.status):
            self.active[parameter] = 0
            if status == AVAILABLE:
                self._partition(parameter)
        return self.rise - start, self.level - start

    def gather_persistent(self) -> int:
        """The step ends by gathering what persists."""
        start = self.level
        for parameter in self.persistent:
            self._gather(parameter, AVAILABLE)
        return self.level - start

    # Rules.

    def _enter(self, module: Module) -> None:
        self._fetch(module)
        self._prefetch()
        self.last_step[id(module)] = self.step
        self.step += 1

    def _fetch(self, module: Module) -> None:
        waits = False
        for parameter in module.parameters:
            self.active[parameter] += 1
            if self.status[parameter] == NOT_AVAILABLE:
                self._gather(parameter, IN_FLIGHT)
                self.in_flight.append(parameter)
                self.available += self.sizes[parameter]
            waits = waits or self.status[parameter] == IN_FLIGHT
        if waits:  # for everything on its way, as one stream carries it
            for parameter in self.in_flight:
                self.status[parameter] = AVAILABLE
            self.in_flight = []

    def _prefetch(self) -> None:
        if not self.traced or self.in_flight or self.available >= self.zero.stage3_max_live_parameters:
            return
        elements = 0
        for module in self.trace[self.step :]:
            for parameter in module.parameters:
                if self.status[parameter] != NOT_AVAILABLE:
                    continue
                self._gather(parameter, IN_FLIGHT)
                self.in_flight.append(parameter)
                self.available += self.sizes[parameter]
                elements += self.sizes[parameter]
                if elements >= self.zero.stage3_prefetch_bucket_size:
                    return

    def _release_module(self, module: Module) -> None:
        for parameter in module.parameters:
            self.active[parameter] -= 1
            if not self.active[parameter] and parameter not in self.persists and not self._keeps(module):
                self._partition(parameter)

    def _keeps(self, module: Module) -> bool:
        return self.traced and self._distance(module) < self.zero.stage3_max_reuse_distance

    def _distance(self, module: Module) -> int:
        """Elements that are used between now and the module's next use; found once and kept for the run."""
        key = self.last_step[id(module)]
        if key not in self.distances:
            uses = (step for step in range(self.step, len(self.trace)) if self.trace[step] is module)
            use = next(uses, None)
            before = self.elements_before
            self.distances[key] = NEVER_AGAIN if use is None else before[use] - before[self.step]
        return self.distances[key]

    def _save(self, module: Module, *, in_backward: bool) -> None:
        """F.linear keeps the weight it was given; a checkpointed block's first run keeps nothing."""
        if not self.autograd_keeps or not module.name.endswith(_LINEAR):
            return
        if self.checkpoints and not in_backward and module.name.startswith(_BLOCKS):
            return
        storage = self.data[module.parameters[0]]
        if storage is not None:
            storage.holders += 1
            self.saved.setdefault(module.name, []).append(storage)

    def _forget(self, module: Module) -> None:
        for storage in self.saved.pop(module.name, []):
            self._drop(storage)

    # Bytes.

    def _gather(self, parameter: int, status: int) -> None:
        self.status[parameter] = status
        self.data[parameter] = _Storage(self.bytes[parameter])
        self.level += self.bytes[parameter]
        self.rise = max(self.rise, self.level)

    def _partition(self, parameter: int) -> None:
        self.available -= self.sizes[parameter]
        storage, self.data[parameter] = self.data[parameter], None
        self.status[parameter] = NOT_AVAILABLE
        if storage is not None:
            self._drop(storage)

    def _drop(self, storage: _Storage) -> None:
        storage.holders -= 1
        if not storage.holders:
            self.level -= storage.size
