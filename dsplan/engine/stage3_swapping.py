"""What stage 3 keeps on a drive (ZeRO-Infinity), and the memory that it locks to get there and back.

Source: DeepSpeed 0.19.8 runtime/zero/stage3.py (DeepSpeedZeroOptimizer_Stage3) and runtime/swap_tensor; function names
in the comments are those files'. Transfers are aligned to 1 KiB (utils.py AIO_ALIGNED_BYTES; one thread an operation,
``aio.intra_op_parallelism``).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate

from dsplan import states
from dsplan.engine.base import Run
from dsplan.engine.stage3_gradients import MIN_SWAP_BYTES, Stage3Gradients
from dsplan.ledger import PINNED, Term
from dsplan.units import round_up

ALIGNED_BYTES = 1024

HOST_PARTITION = Term(
    "parameter partitions before they are flattened (host)", "e·⌈n/N⌉ each", "partition_parameters.py, pinned", PINNED
)


class Stage3Swapping(Stage3Gradients):
    """Which sub-groups and partitions are on the drive, and what of the parameters is on the host."""

    sub_groups: list[list[int]]

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self.swaps_parameters = self.zero.offload_param.device == "nvme"
        self.offload_param = self.zero.offloads_parameters
        self.total = sum(self.parts)

    def _swaps(self, group: list[int]) -> bool:
        """_swappable_optimizer_subgroup: smaller sub-groups stay in memory."""
        return self.swaps_optimizer and 4 * self.elements_of(group) >= MIN_SWAP_BYTES

    def _swapped(self, size: int) -> bool:
        """swappable_tensor: files hold what is at least 1 MiB."""
        return self.swaps_parameters and size >= MIN_SWAP_BYTES

    @cached_property
    def on_drive(self) -> list[bool]:
        """Of each sub-group whether its parameters are not in the flat buffer on the host."""
        if not self.swaps_parameters:
            return [False] * len(self.sub_groups)
        return groups_on_drive(self.sub_groups, self.parts, self.zero.offload_param.max_in_cpu)

    def _take_swap_buffers(self) -> None:
        """partitioned_param_swapper.py _configure_aio: an example of the buffers' size, then the buffers."""
        if self.swaps_parameters:
            offload = self.zero.offload_param
            size = offload.buffer_count * round_up(self.e * offload.buffer_size, ALIGNED_BYTES)
            self.ledger.alloc(states.HOST_TRANSIENT, size)
            self.ledger.alloc(states.SWAP_PARAMETERS, size)
            self.ledger.free(states.HOST_TRANSIENT, size)

    def _flatten_on_host(self) -> None:
        """_create_param_groups_fp16_flat_cpu_memory: pinned whatever offload_param.pin_memory says."""
        ledger, e, offload = self.ledger, self.e, self.zero.offload_param
        in_cpu = min(self.total, offload.max_in_cpu) if self.swaps_parameters else self.total
        self.pin(states.HOST_PARAMETERS, e * in_cpu, pinned=True)
        for group, on_drive in zip(self.sub_groups, self.on_drive, strict=True):
            if not on_drive:
                kept = [e * self.parts[i] for i in group if not self._swapped(e * self.parts[i])]
                ledger.free_many(self.placed(HOST_PARTITION, pinned=offload.pin_memory), kept)
        if any(self.on_drive):
            ledger.alloc(states.SWAP_PARAMETERS, reserved_bytes(self.sub_groups, self.parts, self.sizes, e))


def sub_groups(parts: Sequence[int], size: int) -> list[list[int]]:
    """_create_fp16_sub_groups: indices of the parameters of each; one closes once it has ``size`` elements."""
    ends = list(accumulate(parts))
    groups: list[list[int]] = []
    first = before = 0
    while first < len(ends):
        last = min(bisect_left(ends, before + size, first), len(ends) - 1)
        groups.append(list(range(first, last + 1)))
        first, before = last + 1, ends[last]
    return groups


def groups_on_drive(groups: Sequence[Sequence[int]], parts: Sequence[int], max_in_cpu: int) -> list[bool]:
    """_create_fp16_partitions_with_defragmentation: which groups end beyond ``max_in_cpu`` elements."""
    found, end = [], 0
    for group in groups:
        end += sum([parts[index] for index in group])
        found.append(end > max_in_cpu)
    return found


def reserved_bytes(
    groups: Sequence[Sequence[int]], parts: Sequence[int], sizes: Sequence[int], element_bytes: int
) -> int:
    """reserve_partitioned_swap_space, which the largest group's parameters are told whole (``ds_numel``), bytes."""
    largest = max(groups, key=lambda group: sum([parts[index] for index in group]))
    return sum([round_up(element_bytes * sizes[index], ALIGNED_BYTES) for index in largest])
