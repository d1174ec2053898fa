"""The ledger: what is live, where, when and why.

A formula never returns a naked number. Each kind of allocation is a :class:`Term`; the walk through
a training step (``dsplan.walk``) allocates and frees terms in the order in which DeepSpeed and torch
do, and the :class:`Ledger` keeps the level, the peak of every phase and the moment of each peak.
The peak is the maximum over moments of the sum of what is live then, never the sum of everything.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache

from dsplan.kernels import Kernels
from dsplan.sizes import Scaled, Sizes, total_of
from dsplan.units import next_power_of_two

PHASES = ("init", "forward", "backward", "step")

DEVICE = "device"
PINNED = "pinned"
PAGEABLE = "pageable"
PLACES = (DEVICE, PINNED, PAGEABLE)


@dataclass(frozen=True, slots=True, eq=False)
class Term:
    """One kind of allocation.

    Attributes:
        name: what a person calls it: "fp32 master parameters".
        formula: its size in the legend's letters: "4Ψp/N".
        source: paper section, or file and function, that allocates it.
        place: ``device``, ``pinned`` or ``pageable``.
        pooled: whether torch's allocator of that place hands it out, and rounds it.
    """

    name: str
    formula: str
    source: str
    place: str = DEVICE
    pooled: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryTerm:
    """A term as it stands at one moment: how many bytes of it are live, in how many tensors."""

    name: str
    place: str
    size_bytes: int
    num_tensors: int
    formula: str
    source: str


@dataclass(slots=True, kw_only=True)
class PhaseMemory:
    """One phase of one step, in bytes: the level at its end, the peak within it, and the moment of that."""

    level_bytes: int = 0
    peak_bytes: int = 0
    peak_moment: str = ""


@dataclass(slots=True, kw_only=True)
class StepMemory:
    """The phases of the initialisation or of one step, by name, with host peaks in bytes."""

    name: str
    phases: dict[str, PhaseMemory] = field(default_factory=dict)

    @property
    def peak_phase(self) -> str:
        return max(self.phases, key=lambda phase: self.phases[phase].peak_bytes)

    @property
    def peak_bytes(self) -> int:
        return self.phases[self.peak_phase].peak_bytes


def worst_step(steps: tuple[StepMemory, ...]) -> StepMemory:
    """Of the same step of several ranks the highest level and peak of each phase."""
    worst = StepMemory(name=steps[0].name)
    for phase, first in steps[0].phases.items():
        level, peak, moment = first.level_bytes, first.peak_bytes, first.peak_moment
        for step in steps[1:]:
            memory = step.phases[phase]
            level = max(level, memory.level_bytes)
            if memory.peak_bytes > peak:
                peak, moment = memory.peak_bytes, memory.peak_moment
        worst.phases[phase] = PhaseMemory(level_bytes=level, peak_bytes=peak, peak_moment=moment)
    return worst


@lru_cache(maxsize=4096)
def _known_total(sizes: tuple[int, ...], kernels: Kernels | None) -> tuple[int, int]:
    return total_of(sizes, kernels)


class Ledger:
    """Running totals of every place; the device is watched phase by phase.

    On a device that shares its memory with the host (``kernels.one_pool``) the device's level counts
    the host's terms too. With ``detail`` the ledger also keeps what is live by term, and remembers the
    state at the first moment at which the level reaches ``target_bytes`` in the given step and phase.
    """

    def __init__(self, kernels: Kernels, *, target: tuple[str, str, int] | None = None) -> None:
        self.kernels = kernels
        self._rounded: dict[int, int] = {}  # what the device makes of each size
        self.level = 0
        self.host_level = {PINNED: 0, PAGEABLE: 0}
        self.host_peak = {PINNED: 0, PAGEABLE: 0}
        self.host_total_peak = 0
        self.steps: list[StepMemory] = []
        self.moment = ""
        self.peak = 0
        self._peak_moment = ""
        self._phase: PhaseMemory | None = None
        self._phase_name = ""
        self._target = target
        #: Whether terms are followed one by one; the walk then replays every event.
        self.detailed = target is not None
        self._pinned_free: defaultdict[int, int] = defaultdict(int)  # freed pinned blocks by size
        self._live: defaultdict[Term, list[int]] = defaultdict(lambda: [0, 0])
        self.snapshot: tuple[MemoryTerm, ...] = ()

    # Phases.

    def begin_step(self, name: str) -> None:
        self.steps.append(StepMemory(name=name))

    def begin(self, phase: str) -> None:
        """Start (or resume, for a further micro batch) a phase of the current step."""
        self._phase = self.steps[-1].phases.setdefault(phase, PhaseMemory())
        self._phase_name = phase
        self.peak, self._peak_moment = self.level, self.moment

    def end(self) -> None:
        assert self._phase is not None
        if self.peak >= self._phase.peak_bytes:
            self._phase.peak_bytes, self._phase.peak_moment = self.peak, self._peak_moment
        self._phase.level_bytes = self.level
        self._phase = None

    # Allocations.

    def rounded(self, term: Term, size: int) -> int:
        """What the allocator of the term's place makes of a request of ``size`` bytes."""
        if term.place == DEVICE:
            return self._on_device(size)
        if term.place == PINNED and term.pooled and self.kernels.pinned_rounds_to_power_of_two:
            return next_power_of_two(size) if size else 0
        return size

    def _on_device(self, size: int) -> int:
        rounded = self._rounded.get(size)
        if rounded is None:
            rounded = self._rounded[size] = self.kernels.rounded(size)
        return rounded

    def alloc(self, term: Term, size: int) -> None:
        """One tensor of ``size`` bytes appears."""
        if term.place == DEVICE and not self.detailed:  # as _change does; most of a walk passes here
            rounded = self._rounded.get(size)
            self.level += self._on_device(size) if rounded is None else rounded
            if self.level > self.peak:
                self.peak, self._peak_moment = self.level, self.moment
        elif size:
            self._change(term, self.rounded(term, size), 1)

    def free(self, term: Term, size: int) -> None:
        """One tensor of ``size`` bytes goes."""
        if term.place == DEVICE and not self.detailed:
            rounded = self._rounded.get(size)
            self.level -= self._on_device(size) if rounded is None else rounded
        elif size:
            self._change(term, -self.rounded(term, size), -1)

    def temporary(self, term: Term, size: int) -> None:
        """A tensor that lives only within one operation."""
        self.alloc(term, size)
        self.free(term, size)

    def alloc_many(self, term: Term, sizes: Iterable[int]) -> None:
        """Several tensors of one kind appear one after the other, each rounded by itself."""
        if term.place == PINNED:
            for size in sizes:
                self.alloc(term, size)
        else:
            self._change(term, *self._total(term, sizes))

    def free_many(self, term: Term, sizes: Iterable[int]) -> None:
        """Several tensors of one kind go."""
        if term.place == PINNED:
            for size in sizes:
                self.free(term, size)
        else:
            total, count = self._total(term, sizes)
            self._change(term, -total, -count)

    def _total(self, term: Term, sizes: Iterable[int]) -> tuple[int, int]:
        kernels = self.kernels if term.place == DEVICE else None
        if isinstance(sizes, Sizes):
            sizes = sizes.times(1)
        return sizes.total(kernels) if isinstance(sizes, Scaled) else _known_total(tuple(sizes), kernels)

    def move(self, source: Term, target: Term, size: int) -> None:
        """A tensor of one kind becomes one of another kind without a copy."""
        if self.detailed:
            rounded = self.rounded(source, size)
            self._live[source][0] -= rounded
            self._live[source][1] -= 1
            self._live[target][0] += rounded
            self._live[target][1] += 1

    def rise_and_settle(self, rise: int, net: int) -> None:
        """A stretch of device events: the highest rise over the level at its start, and its net change."""
        if self.level + rise > self.peak:
            self.reach(self.level + rise)
        self.level += net

    def effect(self, act: Callable[[], None]) -> tuple[int, int]:
        """(rise, net) on the device of what ``act`` does, which is taken back there; on the host it stays."""
        level, peak, moment = self.level, self.peak, self._peak_moment
        self.peak = level
        act()
        found = self.peak - level, self.level - level
        self.level, self.peak, self._peak_moment = level, peak, moment
        return found

    def room(self, wanted: int) -> int:  # noqa: ARG002  # a ledger without the batch needs it
        """How far the level is below the highest so far, in bytes of the device; ``wanted``: more is not asked for."""
        highest = max([memory.peak_bytes for step in self.steps for memory in step.phases.values()], default=0)
        return max(highest, self.peak) - self.level

    @property
    def peak_moment(self) -> str:
        """The moment of the phase's peak so far."""
        return self._peak_moment

    def reach(self, level: int) -> None:
        """The phase's highest level so far."""
        self.peak = level
        self._peak_moment = self.moment

    def event(self, term: Term, rounded: int, count: int) -> None:
        """One event of a stretch, its size already rounded (detailed walks only)."""
        self._change(term, rounded, count)

    def _change(self, term: Term, size: int, count: int) -> None:
        place = term.place
        if place == PINNED and term.pooled and self.kernels.pinned_rounds_to_power_of_two:
            self._pinned_block(size)
        elif place != DEVICE:
            self._host(place, size)
        if self._target is not None:
            live = self._live[term]
            live[0] += size
            live[1] += count
        if place == DEVICE or self.kernels.one_pool:
            self.level += size
            if self.level > self.peak:
                self.reach(self.level)
                self._look()

    def _pinned_block(self, size: int) -> None:
        # The pinned allocator keeps what is freed and gives it out again for the same power of two only
        # (aten/src/ATen/core/CachingHostAllocator.h), so its share of the host never shrinks.
        if size < 0:
            self._pinned_free[-size] += 1
        elif self._pinned_free[size]:
            self._pinned_free[size] -= 1
        else:
            self._host(PINNED, size)

    def _host(self, place: str, size: int) -> None:
        level = self.host_level[place] = self.host_level[place] + size
        self.host_peak[place] = max(level, self.host_peak[place])
        self.host_total_peak = max(self.host_total_peak, self.host_level[PINNED] + self.host_level[PAGEABLE])

    def _look(self) -> None:
        if self._target is None or self.snapshot or not self.steps:
            return
        step, phase, size = self._target
        if self.steps[-1].name == step and self._phase_name == phase and self.level == size:
            self.snapshot = self.live_terms()

    def live_terms(self) -> tuple[MemoryTerm, ...]:
        """What is live now, largest first."""
        found = [
            MemoryTerm(
                name=term.name,
                place=term.place,
                size_bytes=size,
                num_tensors=count,
                formula=term.formula,
                source=term.source,
            )
            for term, (size, count) in self._live.items()
            if size
        ]
        return tuple(sorted(found, key=lambda item: (PLACES.index(item.place), -item.size_bytes)))
