"""Counted: the memory of a plan as torch's allocator counts it, by a replay of the walk's own requests.

What is left of a block is not split off where it is 1 MiB or less, and counts with the tensor that got the block
(c10/cuda/CUDACachingAllocator.cpp, should_split). The walk knows the rule for tensors with a segment of their own
(``Kernels.rounded``); which block a tensor of 1 to 10 MiB gets depends on all that came before it. Of a peak of 100 MiB
each such remainder is a percent; gpt2 with one sample has 0.9 % of them, larger models 0.5 % at most.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from dsplan.allocator import Block, CachingAllocator
from dsplan.engine import candidate_ranks
from dsplan.engine.trained import trained_part
from dsplan.kernels import Kernels
from dsplan.ledger import DEVICE, MemoryTerm, PhaseMemory, StepMemory
from dsplan.model import ModelShape
from dsplan.plan import Plan
from dsplan.units import GIB
from dsplan.verdict.operations import EMPTY_CACHE, RELEASE, Trace
from dsplan.verdict.trace import trace
from dsplan.walk import WalkResult

#: A peak of less than this is replayed wherever it is asked for, of a model with at most so many layers: a replay takes
#: 2 to 5 ms a layer, rank and micro batch.
SMALL_BYTES = GIB
SMALL_LAYERS = 6
#: Steps that are replayed, as many as ``verify`` takes: which blocks a step finds free depends on the one before.
STEPS = 4


def counted(
    model: ModelShape,
    plan: Plan,
    world_size: int,
    kernels: Kernels,
    walked: WalkResult,
    *,
    rank: int | None = None,
    capacity_bytes: int | None = None,
    however_large: bool = False,
) -> WalkResult:
    """``walked``, its levels and peaks on the device as the allocator counts them, where the model is small.

    Args:
        walked: of the same plan and ranks, by :func:`dsplan.walk.walk`.
        rank: the one that was walked; None: all that can be the worst, of each phase the worst of them.
        capacity_bytes: as for :func:`dsplan.walk.walk`.
        however_large: replay large models too: 0.2 to 0.4 s for one of 96 layers and a micro batch.

    Returns:
        The same ``walked`` where nothing is replayed, or the device has no such allocator.
    """
    small = model.num_layers <= SMALL_LAYERS and max(step.peak_bytes for step in walked.steps) < SMALL_BYTES
    if not kernels.whole_segments or not (small or however_large):
        return walked
    ranks = candidate_ranks(trained_part(model), plan, world_size) if rank is None else (rank,)
    found: dict[tuple[str, str], PhaseMemory] = {}
    for one in ranks:
        traced = trace(
            model,
            plan,
            world_size,
            kernels,
            rank=one,
            capacity_bytes=capacity_bytes,
            num_steps=STEPS,
        )
        for key, phase in _phases(traced).items():
            other = found.setdefault(key, phase)
            other.level_bytes = max(other.level_bytes, phase.level_bytes)
            if phase.peak_bytes > other.peak_bytes:
                other.peak_bytes, other.peak_moment = phase.peak_bytes, phase.peak_moment
    steps = [
        StepMemory(
            name=step.name, phases={name: found.get((step.name, name), one) for name, one in step.phases.items()}
        )
        for step in walked.steps
    ]
    return replace(walked, steps=tuple(steps))


def unsplit(size_bytes: int) -> MemoryTerm:
    """The term of what a counted peak has beyond the walk's; below 0 where the blocks are smaller than the walk's rule
    for tensors with a segment of their own says, as segments that are there already serve them."""
    return MemoryTerm(
        name="remainders that the allocator does not split off",
        place=DEVICE,
        size_bytes=size_bytes,
        num_tensors=1,
        formula="by a replay",
        source="CUDACachingAllocator.cpp should_split",
    )


def _phases(traced: Trace) -> dict[tuple[str, str], PhaseMemory]:
    """Peak of each step and phase, and the level at its end; a phase that comes again has the highest and the last.

    Small tensors are replayed too, although every remainder in their pool is split off (should_split): their segments
    of 2 MiB lie between those of large tensors, and of two free blocks of one size the lower address goes first.
    """
    allocator = CachingAllocator()
    blocks: list[Block | None] = [None] * len(traced.operations)
    allocate, free = allocator.allocate, allocator.free
    found: dict[tuple[str, str], PhaseMemory] = {}
    for phase, moment, begin, end in _stretches(traced):
        memory = found.setdefault(phase, PhaseMemory())
        allocator.reset_peaks()
        for number, (size, other) in enumerate(traced.operations[begin:end], start=begin):
            if size == RELEASE:
                block = blocks[other]
                assert block is not None, "released before it was asked for"
                free(block)
            elif size == EMPTY_CACHE:
                allocator.empty_cache()
            else:
                blocks[number] = allocate(size, other)
        peak = allocator.peak_allocated_bytes
        if peak >= memory.peak_bytes:
            memory.peak_bytes, memory.peak_moment = peak, moment
        memory.level_bytes = allocator.allocated_bytes
    return found


def _stretches(traced: Trace) -> Iterator[tuple[tuple[str, str], str, int, int]]:
    """(step and phase, moment, first operation, the one after the last) of each moment, in order."""
    ends = [moment.operation for moment in traced.moments[1:]] + [len(traced.operations)]
    for moment, end in zip(traced.moments, ends, strict=True):
        yield (moment.step, moment.phase), moment.moment, moment.operation, end
