"""Secondary partitions: stage 3's coordinator where ``zero_hpz_partition_size`` is more than 1 (hpZ of ZeRO++).

Beside its part among all N ranks, a rank keeps a part among the H ranks of its group of every parameter that has been
partitioned since the last step, and gathers from that. The step ends by forgetting all of them.

Source: DeepSpeed 0.19.8 runtime/zero/partition_parameters.py (_partition, _partition_param_sec,
_all_gather_dtype), partitioned_param_coordinator.py (__all_gather_params_), stage3.py (_post_step,
invalidate_secondary_tensor); function names in the comments are theirs.
"""

from __future__ import annotations

from collections.abc import Sequence

from dsplan.engine.coordinator import Coordinator, Pass
from dsplan.errors import InputError
from dsplan.kernels import Kernels
from dsplan.model import ModelShape
from dsplan.units import round_up
from dsplan.zero import ZeroConfig


def secondary_elements(sizes: Sequence[int], zero: ZeroConfig, world_size: int) -> list[int]:
    """Elements of each parameter's secondary partition, 0 without one: N·⌈n/N⌉/H.

    A group of more ranks than there are is one of all of them (utils/groups.py, _create_zero_param_parallel_group).

    Raises:
        InputError: parameters are offloaded too, or the groups would not be of one size.
    """
    if zero.stage != 3 or zero.zero_hpz_partition_size <= 1:
        return [0] * len(sizes)
    group = min(zero.zero_hpz_partition_size, world_size)
    if world_size % group:
        raise InputError(f"zero_hpz_partition_size: {group} does not divide the {world_size} ranks")
    if zero.offloads_parameters:
        raise InputError("zero_hpz_partition_size: above 1 it is not modelled together with offload_param")
    return [round_up(numel, world_size) // group for numel in sizes]


class SecondaryCoordinator(Coordinator):
    """The first forward finds the partitions that zero.Init has made; later ones are made as parameters are released.

    That a parameter has one is part of the coordinator's state: what has one is gathered apart from what has none.
    """

    def __init__(
        self, model: ModelShape, zero: ZeroConfig, world_size: int, element_bytes: int, kernels: Kernels
    ) -> None:
        super().__init__(model, zero, world_size, element_bytes, kernels)
        self.secondary = [self._bytes(each) for each in secondary_elements(self.sizes, zero, world_size)]
        self.has_secondary = [True] * len(self.sizes)

    def invalidate(self) -> int:
        """invalidate_secondary_tensor; returns the change in bytes."""
        start = self.level
        for parameter, there in enumerate(self.has_secondary):
            if there:
                self._change(-self.secondary[parameter])
        self.has_secondary = [False] * len(self.sizes)
        return self.level - start

    def state(self) -> tuple[int, ...]:
        return (*super().state(), *self.has_secondary)

    def _gather(self, parameters: list[int], state: Pass) -> None:
        """__all_gather_params_: two lists, of which one may be empty."""
        for there in (True, False):
            alike = [parameter for parameter in parameters if self.has_secondary[parameter] is there]
            if alike:
                super()._gather(alike, state)

    def _release(self, parameter: int) -> None:
        """_partition: the secondary partition is made of the whole parameter, which then goes."""
        if self.status[parameter] == 2 and not self.active[parameter] and not self.has_secondary[parameter]:
            self.has_secondary[parameter] = True
            self._change(self.secondary[parameter])
        super()._release(parameter)
