"""The rules of :mod:`dsplan.engine.coordinator` on numbers: what a submodule's hook gathers, prefetches and releases.

How a parameter stands is one number (:mod:`dsplan.engine.alike_state`). Prefetching takes the uses of parameters in the
order of the trace, so what it has fetched for which submodule is known from how many it has taken.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import compress

from dsplan.engine.alike_state import ALONE, ON_ITS_WAY_ALONE, PARTITIONED, TOGETHER, Flights
from dsplan.engine.coordinator import UNASKED, persistent_parameters
from dsplan.engine.parts_trace import Action
from dsplan.kernels import Kernels
from dsplan.model import ModelShape
from dsplan.partition import parameter_sizes
from dsplan.units import ceil_div, round_up
from dsplan.zero import ZeroConfig

#: What was asked in a block: whether a value is below 0; how much more it is in each later block, but for what the
#: blocks take of the queue; and whether that is taken from it.
Asked = tuple[int, int, bool]


class Rules:
    """What is gathered, and how the rules change it; sizes as in :class:`dsplan.engine.coordinator.Coordinator`.

    Attributes:
        stands: how each parameter stands.
        held: of each parameter what autograd keeps: twice the bytes of a storage that it alone has, and 1 more if it
            has the gathered one too.
        level, rise: gathered bytes, and the most there were within a hook.
        taken: entries of the queue that prefetching has taken in this pass.
        available: elements that are gathered, as the limit of what lives counts them.
        least_room, most_room: elements below that limit, where prefetching asked for them.
        lowest, highest: parameters beyond the submodule's own that were looked at.
    """

    def __init__(
        self, model: ModelShape, zero: ZeroConfig, world_size: int, element_bytes: int, kernels: Kernels
    ) -> None:
        self.zero, self.world_size = zero, world_size
        self.sizes = sizes = parameter_sizes(model)
        self.copies_from_host = zero.offloads_parameters and not kernels.one_pool
        self._most_live, self._prefetch_bucket = zero.stage3_max_live_parameters, zero.stage3_prefetch_bucket_size
        self.gathers = world_size > 1 or self.copies_from_host
        self._element_bytes, self._rounded = element_bytes, kernels.rounded
        self._padded = sizes.each(lambda numel: round_up(numel, world_size))
        self._whole_bytes = sizes.each(self._bytes)
        self._padded_bytes = sizes.each(lambda numel: self._bytes(round_up(numel, world_size)))
        self.persists = _persists(model, zero)
        self.stands = [PARTITIONED] * len(sizes)
        self.held = [0] * len(sizes)
        self.level = self.rise = 0
        self.taken = self.available = 0
        self.least_room, self.most_room = UNASKED, -UNASKED
        self.lowest, self.highest = len(sizes), -1
        #: (position, parameters, bytes) of the last pass: what was forgotten at which mark.
        self.forgotten: list[tuple[int, tuple[int, ...], int]] = []
        self._flights = Flights()
        self._users: dict[int, set[str]] = {}  # of parameters that several submodules own, those that use them now
        self._queue: list[int] = []  # empty until the trace is known

    def _bytes(self, elements: int) -> int:
        return self._rounded(self._element_bytes * elements) if self.gathers else 0

    def enter(self, action: Action, base: int, taken: int) -> None:
        """A submodule is entered; ``taken``: entries of the queue up to it and with it."""
        wanted = [base + parameter for parameter in action.parameters]
        stands = self.stands
        missing = [parameter for parameter in wanted if not stands[parameter]]
        if missing:
            self._gather(missing)
        for parameter in wanted:
            if stands[parameter] >= ON_ITS_WAY_ALONE:
                self._wait(parameter)
        for parameter in action.shared:
            self._users.setdefault(parameter, set()).add(action.name)
        if self._queue:
            self._prefetch(taken)

    def _prefetch(self, taken: int) -> None:
        taken = max(taken, self.taken)
        queue, end = self._queue, len(self._queue)
        if taken < end:
            room = self._most_live - self.available
            if room < self.least_room:  # noqa: PLR1730  # nothing is done so often
                self.least_room = room
            if room > self.most_room:  # noqa: PLR1730
                self.most_room = room
            budget = min(room, self._prefetch_bucket)
            batch: dict[int, None] = {}  # in their order
            stands, sizes = self.stands, self.sizes
            while budget > 0 and taken < end:
                parameter = queue[taken]
                taken += 1
                if not stands[parameter] and parameter not in batch:
                    batch[parameter] = None
                    budget -= sizes[parameter]
            if batch:
                self._gather(list(batch))
        self.taken = taken

    def _gather(self, parameters: list[int]) -> None:
        stands, sizes = self.stands, self.sizes
        for parameter in parameters:
            self.available += sizes[parameter]
        if self.world_size == 1 or len(parameters) == 1:
            for parameter in parameters:
                stands[parameter] = ON_ITS_WAY_ALONE
                self.level += self._padded_bytes[parameter]
                if self.copies_from_host:
                    self.level += self._staged(parameter)
        else:
            parameters = sorted(parameters)
            for parameter, number in zip(parameters, self._flights.numbers_of(parameters), strict=True):
                stands[parameter] = number
            self.level += self._flat(parameters)
            if self.copies_from_host:
                parts = sum([ceil_div(sizes[parameter], self.world_size) for parameter in parameters])
                self.rise = max(self.rise, self.level + self._bytes(parts))
        self.rise = max(self.rise, self.level)

    def _flat(self, parameters: Iterable[int]) -> int:
        """Bytes of the common buffer."""
        return self._bytes(sum([self._padded[parameter] for parameter in parameters]))

    def _staged(self, parameter: int) -> int:
        """Bytes of a partition's copy from the host, until the gathering of one parameter is waited for."""
        if self.world_size == 1:
            return 0
        return self._bytes(ceil_div(self.sizes[parameter], self.world_size))

    def _wait(self, parameter: int) -> None:
        stands = self.stands
        if stands[parameter] == ON_ITS_WAY_ALONE:
            stands[parameter] = ALONE
            if self.copies_from_host:
                self.level -= self._staged(parameter)
            return
        members, split, is_split = self._flights[stands[parameter]]
        others = [parameter + each for each in members]
        if not is_split:
            for other, number in zip(others, split, strict=True):
                stands[other] = number
                self.level += self._whole_bytes[other]
            self.rise = max(self.rise, self.level)
        stands[parameter] = TOGETHER
        self.lowest, self.highest = min(self.lowest, others[0]), max(self.highest, others[-1])
        if all(stands[other] != number for other, number in zip(others, split, strict=True)):
            self.level -= self._flat(others)

    def leave(self, action: Action, base: int, position: int, releases: Iterable[bool]) -> None:
        """A submodule is left at the hook ``position``; ``releases``: whether each of its parameters can go."""
        if action.saves:
            for parameter in action.saved:
                self.held[base + parameter] |= 1
        if action.forgets:
            self._forget([base + parameter for parameter in action.saved], position)
        for parameter in action.shared:
            self._users[parameter].discard(action.name)
        for each, goes in zip(action.parameters, releases, strict=True):
            if goes and self.stands[base + each] and not self._users.get(base + each):
                self.available -= self.sizes[base + each]
                self.release(base + each)

    def release(self, parameter: int) -> None:
        """A gathered parameter is partitioned."""
        kinds = self._padded_bytes if self.stands[parameter] == ALONE else self._whole_bytes
        self.stands[parameter] = PARTITIONED
        if self.held[parameter] & 1:
            self.held[parameter] = 2 * kinds[parameter]
        else:
            self.level -= kinds[parameter]

    def _forget(self, saved: list[int], position: int) -> None:
        size = sum([self.held[parameter] // 2 for parameter in saved])
        for parameter in saved:
            self.held[parameter] = 0
        if size:
            self.level -= size
            self.forgotten.append((position, tuple(saved), size))

    def releases(self, action: Action, base: int, number: int, asked: list[Asked]) -> tuple[bool, ...]:
        """Whether each parameter of a submodule that is left in a block can go; what was asked for that is noted."""
        found = []
        for parameter, entry, distance in action.next:
            goes = not self.persists[base + parameter]
            if goes:  # unless prefetching has fetched it for a later submodule
                value = entry[0] + number * entry[1] - self.taken
                asked.append((value, entry[1], True))
                goes = value >= 0
            if goes:  # unless it is used again soon
                value = distance[0] + number * distance[1] - self.zero.stage3_max_reuse_distance
                asked.append((value, distance[1], False))
                goes = value >= 0
            found.append(goes)
        return tuple(found)

    # What happens to everything at once.

    def partition_all(self) -> int:
        """The optimizer's step starts by releasing everything; returns the change in bytes."""
        start = self.level
        if any(self.held):
            for parameter, stands in enumerate(self.stands):
                if stands >= ON_ITS_WAY_ALONE:
                    self._wait(parameter)
            for parameter, stands in enumerate(self.stands):
                if stands:
                    self.release(parameter)
        else:
            self.stands, self.level = [PARTITIONED] * len(self.stands), 0
        self._users.clear()
        return self.level - start

    def gather_persistent(self) -> int:
        """The step ends by gathering what stays resident, each alone; returns the change in bytes."""
        start = self.level
        self.stands = list(self.persists)
        self.level += sum(compress(self._padded_bytes, self.persists))
        return self.level - start

    def invalidate(self) -> int:
        """The step's end for secondary partitions, of which there are none here; returns the change in bytes."""
        return 0


def _persists(model: ModelShape, zero: ZeroConfig) -> bytes:
    """Of each parameter whether it stays gathered between steps (:func:`persistent_parameters`): alone, so to say."""
    sizes, most = parameter_sizes(model), zero.stage3_param_persistence_threshold
    small = sum([sum([numel for numel in run if numel <= most]) * times for run, times in sizes.runs])
    if small <= zero.stage3_model_persistence_threshold:
        return b"".join([bytes([ALONE * (numel <= most) for numel in run]) * times for run, times in sizes.runs])
    persistent = persistent_parameters(model, zero)
    return bytes([ALONE * (parameter in persistent) for parameter in range(len(sizes))])
