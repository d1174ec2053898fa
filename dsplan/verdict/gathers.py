"""Gathers: what stage 3 gathers and releases at every hook, block by block.

``dsplan.engine.gathering`` tells of each hook the rise and the net change; the replay of an allocator needs each
buffer. The rules are the coordinator's, which is only listened to.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from itertools import accumulate

from dsplan.engine.coordinator import Change, Coordinator, Mark, Module, Pass
from dsplan.engine.coordinators import SecondaryLeafCoordinator, coordinator_of
from dsplan.engine.frozen import FrozenCoordinator
from dsplan.engine.gathering import MICRO_BATCHES
from dsplan.engine.gathering import marks_and_saving as marks_of
from dsplan.engine.leaves import LeafCoordinator
from dsplan.engine.secondary import SecondaryCoordinator
from dsplan.kernels import Kernels
from dsplan.model import ModelShape
from dsplan.verdict.ahead import Kind, Signal
from dsplan.verdict.requests import Placed
from dsplan.workload import Workload
from dsplan.zero import OffloadOptimizer, ZeroConfig

#: Bytes of the buffers that a hook takes (positive) and gives back (negative), in order; parameters' have their place.
#: Between them signals, of no bytes.
Changes = tuple[int, ...]


class _Listener(Coordinator):
    """A coordinator that writes down every buffer, call by call."""

    def __init__(
        self, model: ModelShape, zero: ZeroConfig, world_size: int, element_bytes: int, kernels: Kernels
    ) -> None:
        super().__init__(model, zero, world_size, element_bytes, kernels)
        self.calls: list[list[int]] = []
        self._forgetting: list[int] = []
        self._coming: int | None = None  # the parameter whose storage comes
        self._going: int | None = None
        self._asked = 0
        self._numbers: dict[int, int] = {}  # of each parameter in flight its gather's

    def leftovers(self) -> Change:
        self.calls.append([])
        return super().leftovers()

    def partition_all(self) -> int:
        self.calls.append([])
        return super().partition_all()

    def gather_persistent(self) -> int:
        self.calls.append([])
        return super().gather_persistent()

    def invalidate(self) -> int:
        self.calls.append([])
        return super().invalidate()

    def _gather(self, parameters: list[int], state: Pass) -> None:
        super()._gather(parameters, state)
        self._asked += 1
        self._numbers |= dict.fromkeys(parameters, self._asked)
        self._signal(Kind.ASKED, self._asked)

    def _wait(self, parameter: int) -> None:
        number = self._numbers.pop(parameter)
        self._signal(Kind.WAITS, number)
        super()._wait(parameter)
        self._signal(Kind.FETCHED, number)

    def _signal(self, kind: Kind, number: int) -> None:
        if self.world_size > 1:
            self.calls[-1].append(Signal.of(kind, number))

    def _forget(self, module: Module, position: int) -> None:
        self._forgetting = [
            Placed.at(self.detached[parameter], parameter) for parameter in module.saved if parameter in self.detached
        ]
        super()._forget(module, position)
        self._forgetting = []

    def _change(self, size: int) -> None:
        if self._forgetting:  # several buffers go as one
            self.calls[-1] += [-each for each in self._forgetting]
        elif size:
            place = self._coming if size > 0 else self._going  # a secondary partition is nobody's
            self.calls[-1].append(size if place is None else Placed.at(size, place))
        super()._change(size)

    def _allocate_parameter(self, parameter: int, elements: int) -> None:
        self._coming = parameter
        super()._allocate_parameter(parameter, elements)
        self._coming = None

    def _release(self, parameter: int) -> None:
        self._going = parameter
        super()._release(parameter)
        self._going = None


class _SecondaryListener(_Listener, SecondaryCoordinator):
    """The same where a rank keeps secondary partitions."""


class _LeafListener(_Listener, LeafCoordinator):
    """The same where some modules are fetched whole."""


class _SecondaryLeafListener(_Listener, SecondaryLeafCoordinator):
    """Both."""


class _FrozenListener(_Listener, FrozenCoordinator):
    """The same where not all parameters are trained."""


_LISTENERS: dict[type[Coordinator], type[_Listener]] = {
    Coordinator: _Listener,
    SecondaryCoordinator: _SecondaryListener,
    LeafCoordinator: _LeafListener,
    SecondaryLeafCoordinator: _SecondaryLeafListener,
    FrozenCoordinator: _FrozenListener,
}


class _Heard(list[Mark]):
    """The hooks of a pass; taking the next one begins a call of its listener."""

    def __init__(self, marks: list[Mark], listener: _Listener) -> None:
        super().__init__(marks)
        self._listener = listener

    def __iter__(self) -> Iterator[Mark]:
        for mark in super().__iter__():
            self._listener.calls.append([])
            yield mark


def gathers(
    model: ModelShape, zero: ZeroConfig, world_size: int, workload: Workload, kernels: Kernels, num_steps: int
) -> list[Changes]:
    """The changes of ``num_steps`` steps in the order in which the walk's stage 3 asks for them.

    A hook that changes nothing is left out. One that takes as much as it gave back just before is not heard either: its
    changes go with the next one's. The end of a backward pass, the release before the update, the gathering after it
    and what is forgotten then are always there. ``num_steps`` are those of
    :func:`dsplan.engine.gathering.gather_steps`.
    """
    hooks = Workload(
        sequence_length=1, precision=workload.precision, activation_checkpointing=workload.activation_checkpointing
    )
    rules = replace(zero, offload_optimizer=OffloadOptimizer())
    micro_batches = min(workload.gradient_accumulation_steps, MICRO_BATCHES)
    return list(_gathers(model, rules, world_size, hooks, kernels, micro_batches, num_steps))


@lru_cache(maxsize=64)
def _gathers(
    model: ModelShape,
    zero: ZeroConfig,
    world_size: int,
    hooks: Workload,
    kernels: Kernels,
    micro_batches: int,
    num_steps: int,
) -> tuple[Changes, ...]:
    own_linear = zero.memory_efficient_linear
    marks, saving = marks_of(model, hooks, kernels.of_programs(zero3_linear=own_linear), saves_weights=not own_linear)
    kind = _LISTENERS[coordinator_of(model, zero)]
    listener = kind(model, zero, world_size, hooks.element_bytes, kernels)
    found: list[Changes] = []
    for _ in range(num_steps):
        for _ in range(micro_batches):
            listener.calls = []
            listener.run(_Heard(marks, listener), saving)
            unheard: Changes = ()
            for call in listener.calls:
                if sum(call) or max(accumulate(call), default=0) > 0:
                    found.append((*unheard, *call))
                    unheard = ()
                else:
                    unheard += tuple(call)
            listener.calls = []
            listener.leftovers()
            found.append((*unheard, *listener.calls[0]))
        listener.calls = []
        listener.partition_all()
        listener.gather_persistent()
        listener.invalidate()
        found += [tuple(call) for call in listener.calls]
    return tuple(found)
