"""Stage 3 with Muon: the step gathers whole gradients and momentum of the matrices, and each rank updates its share.

Source: DeepSpeed 0.19.8 runtime/zero/stage3.py (DeepSpeedZeroOptimizer_Stage3); function names in the comments are that
file's. Legend: c, g bytes of an element of a gradient where it is communicated and where it is accumulated.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

from dsplan import states
from dsplan.engine.base import Run
from dsplan.engine.muon_groups import muon_groups
from dsplan.engine.muon_repeats import Repeats
from dsplan.engine.muon_update import Updates
from dsplan.engine.stage3 import Stage3
from dsplan.engine.stage3_swapping import HOST_PARTITION, sub_groups
from dsplan.engine.trained import trained_part
from dsplan.ledger import Term
from dsplan.model import ModelShape
from dsplan.partition import FlatGroup, parameter_sizes
from dsplan.units import MIB, ceil_div
from dsplan.zero import ZeroConfig

#: __init__, _muon_allgather_max_cached_bytes.
MAX_CACHED_BYTES = 256 * MIB
#: _muon_update_sub_group: of the two gathers of a round, which hold what they gather into until those of the next.
_HANDLES = ("grad_handle", "momentum_handle")
#: The same: what the loop that copies results out of padded tensors leaves its names for.
_COPIED = (("gathered_grad", "grad_out"), ("gathered_momentum", "momentum_out"))
#: Names with the bytes of what they stand for, and the buffers that are kept.
_Left = tuple[tuple[tuple[str, tuple[int, ...]], ...], tuple[tuple[tuple[int, int], tuple[int, int]], ...]]


class MuonStage3(Stage3):
    """Ranks differ by the matrices that they update: of a round of N the rank's own."""

    def __init__(self, run: Run) -> None:
        self.muons, self.adams = muon_groups(trained_part(run.model), under_zero_init=True)
        self.of_muon = frozenset(self.muons.order)
        super().__init__(run)
        self.compiled = Updates()
        workload = run.plan.workload
        self.communicated = workload.communication_data_type or workload.precision
        self._cached: dict[tuple[int, int], tuple[int, int]] = {}  # bytes of buffers, by elements and width
        self._chunks: Repeats[_Left] = Repeats()
        self._names: dict[str, list[int]] = {}  # what names of DeepSpeed's functions stand for (bytes)

    def _sub_groups(self) -> list[list[int]]:
        """_create_fp16_partitions_with_defragmentation: each group of parameters by itself."""
        groups = (_cut(each, self.run.world_size, self.zero.sub_group_size) for each in (self.muons, self.adams))
        return [sub_group for group in groups for sub_group in group]

    def elements_of(self, group: Sequence[int]) -> int:
        """Elements of the rank's parts of a sub-group, whose parameters need not come one after the other."""
        return sum([self.parts[index] for index in group])

    def _flatten_on_host(self) -> None:
        """_create_param_groups_fp16_flat_cpu_memory: a pinned buffer for each group of parameters."""
        for each in (self.muons, self.adams):
            self.pin(states.HOST_PARAMETERS, self.e * self.elements_of(each.order), pinned=True)
        partition = self.placed(HOST_PARTITION, pinned=self.zero.offload_param.pin_memory)
        for group in self.sub_groups:
            self.ledger.free_many(partition, [self.e * self.parts[index] for index in group])

    def _is_muons(self, group: list[int]) -> bool:
        return group[0] in self.of_muon

    def _made_master(self, group: list[int]) -> None:
        """_create_momentum_buffer, in the dtype of the communication."""
        if self._is_muons(group):
            term = states.HOST_MUON_MOMENTUM if self.offload else states.MUON_MOMENTUM
            self.ledger.alloc(term, self.c * self.elements_of(group))

    def _update(self, group: list[int], *, first: bool, on_device: bool) -> None:
        super()._update(group, first=first and not self._is_muons(group), on_device=on_device)  # Muon's has no more

    # Muon's updates.

    def _take_updates(self) -> None:
        """_apply_muon_to_accumulated_grads."""
        self.ledger.moment = "Muon's updates"
        for group in self.sub_groups:
            for chunk in _chunks(group, self.sizes, self.zero.reduce_bucket_size) if self._is_muons(group) else ():
                self._update_like_before(chunk)
        self._bind("full_grads", [], states.MUON_GATHERED)

    def _update_like_before(self, chunk: list[int]) -> None:
        """As :meth:`_update_gathered`; of matrices of the same shapes, met as the ones before, it comes to the same."""
        parameters, run = self.run.model.parameters, self.run
        shapes = tuple([parameters[index].shape for index in chunk])
        if not self.compiled.repeat(self.ledger, shapes[run.rank :: run.world_size]):
            self._update_gathered(chunk)
            return
        names = tuple([(name, *sizes) for name, sizes in self._names.items()])
        key = shapes, names, tuple(self._cached)
        left, cached = self._chunks.take(self.ledger, key, lambda: self._update_gathered(chunk))
        self._names = {name: list(sizes) for name, sizes in left}
        self._cached = dict(cached)

    def _update_gathered(self, chunk: list[int]) -> _Left:
        """_apply_muon_to_accumulated_grads, one chunk; returns what its names and the buffers are then."""
        fulls = self._gather([self.parts[index] for index in chunk], lists=1)
        self._update_chunk(chunk)
        self._bind("full_grads", fulls, states.MUON_GATHERED)
        return tuple([(name, tuple(sizes)) for name, sizes in self._names.items()]), tuple(self._cached.items())

    def _update_chunk(self, chunk: list[int]) -> None:
        """_muon_update_sub_group."""
        ledger, world, rank = self.ledger, self.run.world_size, self.run.rank
        clones = [self.c * self.parts[index] for index in chunk]
        ledger.alloc_many(states.MUON_GATHERED, clones)
        momentum = self._gather([self.parts[index] for index in chunk], lists=1) if world > 1 else []
        for begin in range(0, len(chunk), world):
            several = chunk[begin : begin + world]
            shapes = {self.run.model.parameters[index].shape for index in several}
            uniform = len(several) == world and len(shapes) == 1
            if rank < len(several):
                self.compiled.take(ledger, self.run.model.parameters[several[rank]].shape, self.communicated)
                self._free("update", states.MUON_UPDATES)
                self._names["update"] = [self.c * self.sizes[several[rank]]]
            largest = self.c * max(self.sizes[index] for index in several)
            padded = 0 if uniform else largest
            for name, count in (("local_grad", 1), ("local_momentum", 1), ("grad_out", world), ("momentum_out", world)):
                self._bind_new(name, [padded] * count)
            for name in _HANDLES:
                self._bind_new(name, [world * largest])  # ProcessGroupNCCL.cpp, allgather: what it gathers into
            if not uniform:
                for name, out in _COPIED:
                    self._free(name, states.MUON_EXCHANGE)
                    self._names[name] = [self._names[out].pop()]
        self._free("gathered_momentum", states.MUON_EXCHANGE)  # the name is used again
        for index in chunk:
            part = self.parts[index]
            pads = (rank + 1) * part > self.sizes[index]
            self._bind_new("buffer_to_update", [self.g * part] if pads else [])
        self._free("update", states.MUON_UPDATES)
        for name in ("local_grad", "local_momentum", "grad_out", "momentum_out", *_HANDLES):
            self._free(name, states.MUON_EXCHANGE)
        for name in ("gathered_grad", "buffer_to_update"):
            self._free(name, states.MUON_EXCHANGE)
        ledger.free_many(states.MUON_GATHERED, clones)
        ledger.free_many(states.MUON_GATHERED, momentum)

    def _gather(self, parts: list[int], *, lists: int) -> list[int]:
        """_partitioned_buffers_all_gather: bytes of what it returns and its caller has to free."""
        ledger, world, width = self.ledger, self.run.world_size, self.g if self.offload else self.c
        if world == 1:
            returned = [width * part for part in parts] if self.casts_for_accumulation else []
            ledger.alloc_many(states.MUON_GATHERED, returned)
            return returned
        local = width * lists * sum(parts)
        key = (local, width)
        sizes = self._cached.pop(key, None)
        temporary = False
        if sizes is None:
            sizes = (world * local, local)
            ledger.alloc_many(states.MUON_GATHERING, sizes)
            temporary = sum(sizes) > MAX_CACHED_BYTES
        if not temporary:
            while self._cached and sum(map(sum, self._cached.values())) + sum(sizes) > MAX_CACHED_BYTES:
                ledger.free_many(states.MUON_GATHERING, self._cached.pop(next(iter(self._cached))))
            self._cached[key] = sizes
        ledger.alloc(states.MUON_GATHERED, world * local)
        if temporary:
            ledger.free_many(states.MUON_GATHERING, sizes)
        return [world * local]

    # Names of a function, of which each holds what it held until it has something new.

    def _bind_new(self, name: str, sizes: list[int]) -> None:
        """New tensors for a name; what it held goes when they are there."""
        self.ledger.alloc_many(states.MUON_EXCHANGE, sizes)
        self._bind(name, sizes, states.MUON_EXCHANGE)

    def _bind(self, name: str, sizes: list[int], term: Term) -> None:
        """Tensors that are there already for a name."""
        self._free(name, term)
        self._names[name] = sizes

    def _free(self, name: str, term: Term) -> None:
        held = self._names.pop(name, None)
        if held:
            self.ledger.free_many(term, held)


def _cut(group: FlatGroup, world_size: int, size: int) -> list[list[int]]:
    """The sub-groups of a group of parameters."""
    parts = [ceil_div(numel, world_size) for numel in group.numels]
    return [[group.order[place] for place in places] for places in sub_groups(parts, size)]


def _chunks(group: Sequence[int], sizes: Sequence[int], bucket: int) -> Iterator[list[int]]:
    """_apply_muon_to_accumulated_grads: matrices one after the other, as many as fit into a bucket, or one."""
    chunk: list[int] = []
    elements = 0
    for index in group:
        if chunk and elements + sizes[index] > bucket:
            yield chunk
            chunk, elements = [], 0
        chunk.append(index)
        elements += sizes[index]
    yield chunk


@lru_cache(maxsize=256)
def worst_ranks_of_rounds(model: ModelShape, zero: ZeroConfig, world_size: int) -> tuple[int, ...]:
    """The ranks that can be the worst: the one that updates the largest matrix of the largest chunk, and the first."""
    (muons, _), sizes = muon_groups(model, under_zero_init=True), parameter_sizes(model)
    largest, rank = (0, 0), 0
    for group in _cut(muons, world_size, zero.sub_group_size):
        for chunk in _chunks(group, sizes, zero.reduce_bucket_size):
            elements = sum([sizes[index] for index in chunk])
            for place, index in enumerate(chunk):
                if (elements, sizes[index]) > largest:
                    largest, rank = (elements, sizes[index]), place % world_size
    return (rank, 0) if rank else (0,)
