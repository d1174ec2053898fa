"""Walk: initialisation and training steps, in the order in which DeepSpeed and torch allocate.

The sizes are closed formulas; their lifetimes are replayed. The walk drives one engine
(``dsplan.engine``) and the programs of the model (``dsplan.activations``), and the ledger keeps
levels and peaks. A model's blocks are alike, so each block replays the same short list of stretches:
a rise, a net change, and what happens at its end.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

from dsplan.activations import layers_vary
from dsplan.engine import Run, candidate_ranks, programs_for
from dsplan.engine.chosen_leaves import with_chosen_leaf
from dsplan.engine.outline import Batch, Outlines, WithoutBatch, cut_programs, tokens_bytes
from dsplan.engine.outliner import begun
from dsplan.engine.tracing import Interned, TracingLedger
from dsplan.engine.trained import trained_part
from dsplan.engine.training import FIRST_STEP, STEADY_STATE, Walk
from dsplan.hardware import Accelerator
from dsplan.kernels import Kernels
from dsplan.ledger import PAGEABLE, PINNED, Ledger, MemoryTerm, StepMemory, worst_step
from dsplan.model import ModelShape
from dsplan.overhead import device_overhead
from dsplan.plan import Plan

__all__ = ["FIRST_STEP", "STEADY_STATE", "Walk", "WalkResult", "capacity_of", "walk", "worst_rank"]


@dataclass(frozen=True, slots=True, kw_only=True)
class WalkResult:
    """What a walk found: the initialisation, the steps in order, and host peaks in bytes."""

    steps: tuple[StepMemory, ...]
    pinned_bytes: int
    pageable_bytes: int
    host_bytes: int
    terms: tuple[MemoryTerm, ...]


def walk(
    model: ModelShape,
    plan: Plan,
    world_size: int,
    kernels: Kernels,
    *,
    rank: int | None = None,
    target: tuple[str, str, int] | None = None,
    capacity_bytes: int | None = None,
) -> WalkResult:
    """Walk the ranks of a plan that can be the worst, and take the worst of each phase; or only ``rank``.

    With ``target`` the result also lists what is live at that step, phase and level, on the rank that
    reaches it. ``capacity_bytes`` is what the device has for tensors (:func:`capacity_of`): where two copies of
    the model are more, stages 1 and 2 flatten it on the host. None: the device has room.
    """
    model = with_chosen_leaf(model, plan.zero)
    ranks = candidate_ranks(trained_part(model), plan, world_size) if rank is None else (rank,)
    run = Run(
        model=model,
        plan=plan,
        world_size=world_size,
        kernels=kernels,
        ledger=Ledger(kernels),
        capacity_bytes=capacity_bytes,
    )
    outlined = None if layers_vary(model, plan.workload) else _walk_outlined(run, ranks)
    if outlined is not None and target is None:
        return outlined
    if outlined is not None and target is not None and _is_peak(outlined, target):
        for one in ranks:  # of one that gets there the terms are wanted, of the others nothing more
            alone = _walk_outlined(run, (one,))
            if alone is not None and _is_peak(alone, target):
                return replace(outlined, terms=_walk_rank(_detailed(run, one, target)).terms)
    results = [_walk_rank(_detailed(run, one, target)) for one in ranks]
    if len(results) == 1:
        return results[0]
    return WalkResult(
        steps=tuple(worst_step(steps) for steps in zip(*(result.steps for result in results), strict=True)),
        pinned_bytes=max(result.pinned_bytes for result in results),
        pageable_bytes=max(result.pageable_bytes for result in results),
        host_bytes=max(result.host_bytes for result in results),
        terms=next((result.terms for result in results if result.terms), ()),
    )


def _is_peak(result: WalkResult, target: tuple[str, str, int]) -> bool:
    """Whether ``target`` is the peak of its step and phase."""
    name, phase, size = target
    found = [step.phases[phase].peak_bytes for step in result.steps if step.name == name and phase in step.phases]
    return found == [size]


def _detailed(run: Run, rank: int, target: tuple[str, str, int] | None) -> Run:
    return run.of_rank(rank, Ledger(run.kernels, target=target))


def capacity_of(accelerator: Accelerator | None, world_size: int) -> int | None:
    """Bytes of a device that tensors can have once the engine is being initialised; None: not known.

    That is what DeepSpeed asks the driver for (accelerator/cuda_accelerator.py available_memory), with nobody else on
    the device: usable memory without the context and the communication's buffers.
    """
    if accelerator is None or accelerator.usable_bytes is None:
        return None
    return accelerator.usable_bytes - device_overhead(accelerator, world_size)


def worst_rank(model: ModelShape, plan: Plan, world_size: int, kernels: Kernels) -> int:
    """The rank whose steps have the highest peak; where all ranks are alike, rank 0."""
    ranks = candidate_ranks(trained_part(model), plan, world_size)
    if len(ranks) == 1:
        return ranks[0]
    peaks = {rank: _peak(walk(model, plan, world_size, kernels, rank=rank)) for rank in ranks}
    return max(peaks, key=lambda rank: peaks[rank])


def _peak(result: WalkResult) -> int:
    """The peak over the steps, initialisation apart."""
    return max(step.peak_bytes for step in result.steps[1:])


def _walk_rank(run: Run) -> WalkResult:
    Walk(run).take()
    ledger = run.ledger
    return WalkResult(
        steps=tuple(ledger.steps),
        pinned_bytes=ledger.host_peak[PINNED],
        pageable_bytes=ledger.host_peak[PAGEABLE],
        host_bytes=ledger.host_total_peak,
        terms=ledger.snapshot,
    )


def _walk_outlined(run: Run, ranks: tuple[int, ...]) -> WalkResult | None:
    """The worst of ``ranks`` by their outlines; None where more than the programs depends on the batch."""
    key, capacity = WithoutBatch(run), run.capacity_bytes
    outlines = _outlines(key, ranks, None)
    if outlines is not None and capacity is not None and outlines.init_bytes > capacity:
        outlines = _outlines(key, ranks, capacity)  # the initialisation may have to make room
    if outlines is None:
        return None
    cut = cut_programs(run.model, programs_for(run, outlines.kernels), *outlines.cuts)
    if cut.calls != outlines.calls:
        return None
    batch = Batch(cut, tokens_bytes(run.plan.workload), run.kernels)
    steps = outlines.walk(batch)
    if not outlines.holds(batch):
        return None
    return WalkResult(
        steps=steps,
        pinned_bytes=max([one.pinned_bytes for one in outlines.ranks]),
        pageable_bytes=max([one.pageable_bytes for one in outlines.ranks]),
        host_bytes=max([one.host_bytes for one in outlines.ranks]),
        terms=(),
    )


@lru_cache(maxsize=256)
def _outlines(key: WithoutBatch, ranks: tuple[int, ...], capacity_bytes: int | None) -> Outlines | None:
    run = key.run if key.run.capacity_bytes == capacity_bytes else replace(key.run, capacity_bytes=capacity_bytes)
    walk = begun(run, ranks[0], TracingLedger(run.kernels, Interned()))
    if walk.checkpoints is not None:
        return None
    others = [walk.of_rank(rank) for rank in ranks[1:]]
    walks = [walk, *[other for other in others if not walk.outweighs(other)]]
    for each in walks:
        each.train()
    cuts = (walk.engine.follows_gradients, walk.engine.follows_modules)
    found = tuple([each.tracing.outline() for each in walks])
    return Outlines(ranks=found, cuts=cuts, calls=walk.cut.calls, kernels=walk.kernels)
