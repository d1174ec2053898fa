"""Walk: initialisation and training steps, in the order in which DeepSpeed and torch allocate.

The sizes are closed formulas; their lifetimes are replayed. The walk drives one engine
(``dsplan.engine``) and the programs of the model (``dsplan.activations``), and the ledger keeps
levels and peaks. A model's blocks are alike, so each block replays the same short list of stretches:
a rise, a net change, and what happens at its end.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

from dsplan.activations import INPUTS, Program
from dsplan.engine import Run, candidate_ranks, engine_for, programs_for
from dsplan.engine.gathering import MICRO_BATCHES, acts
from dsplan.hardware import Accelerator
from dsplan.kernels import Kernels
from dsplan.ledger import PAGEABLE, PINNED, Ledger, MemoryTerm, PhaseMemory, StepMemory, Term
from dsplan.model import ModelShape
from dsplan.overhead import LT_WORKSPACE, WORKSPACE, device_overhead
from dsplan.plan import Plan
from dsplan.tape import ALLOC, FREE, GRADIENT, PRODUCT, Event

#: Steps that the walk takes: the first (no optimizer states yet), and enough more to be steady
#: (stage 3 records its trace in the first and prefetches from the second on).
FIRST_STEP = "first step"
STEADY_STATE = "steady state"
#: Stage 3 puts a linear layer of its own in the place of torch's (deepspeed/runtime/zero/linear.py).
STAGE_OF_OWN_LINEAR = 3

#: (rise, net, kind, index): a stretch of device events, then a gradient or a module's hook, or nothing (-1).
Stretch = tuple[int, int, int, int]


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
    ranks = candidate_ranks(model, plan, world_size) if rank is None else (rank,)
    results = [_walk_rank(model, plan, world_size, kernels, one, target, capacity_bytes) for one in ranks]
    if len(results) == 1:
        return results[0]
    return WalkResult(
        steps=tuple(_worst(steps) for steps in zip(*(result.steps for result in results), strict=True)),
        pinned_bytes=max(result.pinned_bytes for result in results),
        pageable_bytes=max(result.pageable_bytes for result in results),
        host_bytes=max(result.host_bytes for result in results),
        terms=next((result.terms for result in results if result.terms), ()),
    )


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
    ranks = candidate_ranks(model, plan, world_size)
    if len(ranks) == 1:
        return ranks[0]
    peaks = {rank: _peak(walk(model, plan, world_size, kernels, rank=rank)) for rank in ranks}
    return max(peaks, key=lambda rank: peaks[rank])


def _peak(result: WalkResult) -> int:
    """The peak over the steps, initialisation apart."""
    return max(step.peak_bytes for step in result.steps[1:])


def _walk_rank(
    model: ModelShape,
    plan: Plan,
    world_size: int,
    kernels: Kernels,
    rank: int,
    target: tuple[str, str, int] | None,
    capacity_bytes: int | None,
) -> WalkResult:
    ledger = Ledger(kernels, target=target)
    run = Run(
        model=model,
        plan=plan,
        world_size=world_size,
        kernels=kernels,
        ledger=ledger,
        rank=rank,
        capacity_bytes=capacity_bytes,
    )
    _Walk(run).take()
    return WalkResult(
        steps=tuple(ledger.steps),
        pinned_bytes=ledger.host_peak[PINNED],
        pageable_bytes=ledger.host_peak[PAGEABLE],
        host_bytes=ledger.host_total_peak,
        terms=ledger.snapshot,
    )


def _worst(steps: tuple[StepMemory, ...]) -> StepMemory:
    worst = StepMemory(name=steps[0].name)
    for phase in steps[0].phases:
        found = [step.phases[phase] for step in steps]
        highest = max(found, key=lambda memory: memory.peak_bytes)
        worst.phases[phase] = PhaseMemory(
            level_bytes=max(memory.level_bytes for memory in found),
            peak_bytes=highest.peak_bytes,
            peak_moment=highest.peak_moment,
        )
    return worst


class _Walk:
    def __init__(self, run: Run) -> None:
        self.run = run
        self.ledger = run.ledger
        self.engine = engine_for(run)
        zero = run.plan.zero
        own_linear = zero.stage == STAGE_OF_OWN_LINEAR and zero.memory_efficient_linear
        self.adds_bias = run.model.bias and not own_linear
        kernels = replace(run.kernels, zero3_linear=True) if own_linear else run.kernels
        self.pieces = programs_for(run, kernels)
        cuts = (self.engine.follows_gradients, self.engine.follows_modules)
        self.embedding = _compress(run.model, self.pieces.embedding, *cuts)
        self.block = _compress(run.model, self.pieces.block, *cuts)
        # The head's gradients come first: with them ZeRO's buckets appear, whatever the blocks need.
        self.head = _compress(run.model, self.pieces.head, True, self.engine.follows_modules)
        self.workspaces = 0

    def take(self) -> None:
        ledger, engine = self.ledger, self.engine
        ledger.begin_step("init")
        ledger.begin("init")
        ledger.moment = "building the model"
        engine.initialise()
        ledger.end()
        for number in range(engine.num_steps):
            last = number == engine.num_steps - 1
            ledger.begin_step(FIRST_STEP if number == 0 else STEADY_STATE if last else f"step {number + 1}")
            self._step(first=number == 0)

    def _step(self, *, first: bool) -> None:
        ledger, engine = self.ledger, self.engine
        micro_batches = min(self.run.plan.workload.gradient_accumulation_steps, MICRO_BATCHES)
        for micro_batch in range(micro_batches):
            boundary = micro_batch == micro_batches - 1
            engine.boundary = boundary
            self._forward()
            self._backward()
            engine.end_backward(boundary=boundary)
            self._drop_inputs()
            ledger.end()
            ledger.begin("step")
            if boundary:
                engine.step(first=first)
            ledger.end()

    @property
    def _tokens_bytes(self) -> int:
        workload = self.run.plan.workload
        return 8 * workload.micro_batch_size * workload.sequence_length

    def _workspace(self, threads: int) -> None:
        # The forward thread's appears with its first product, autograd's thread brings a second one. Products with a
        # bias are the forward's; autograd's thread has them where it recomputes.
        run = self.run
        recomputes = run.plan.workload.activation_checkpointing != "none"
        while self.workspaces < threads:
            self.workspaces += 1
            self.ledger.alloc(WORKSPACE, run.kernels.workspace_bytes)
            if self.adds_bias and (self.workspaces == 1 or recomputes):
                self.ledger.alloc(LT_WORKSPACE, run.kernels.lt_workspace_bytes)

    def _forward(self) -> None:
        ledger, layers = self.ledger, self.run.model.num_layers
        ledger.begin("forward")
        ledger.moment = "embedding"
        ledger.alloc(INPUTS, self._tokens_bytes)
        ledger.alloc(INPUTS, self._tokens_bytes)
        self.engine.begin_forward()
        self._replay(self.pieces.embedding.forward, self.embedding[0], 0)
        self._workspace(1)
        for layer in range(layers):
            ledger.moment = f"forward of block {layer}"
            self._replay(self.pieces.block.forward, self.block[0], layer)
        ledger.moment = "head and loss"
        self._replay(self.pieces.head.forward, self.head[0], 0)
        ledger.end()

    def _backward(self) -> None:
        ledger = self.ledger
        ledger.begin("backward")
        ledger.moment = "backward of the loss and the head"
        self._replay(self.pieces.head.backward, self.head[1], 0)
        for layer in reversed(range(self.run.model.num_layers)):
            ledger.moment = f"backward of block {layer}"
            self._replay(self.pieces.block.backward, self.block[1], layer)
        ledger.moment = "backward of the embedding"
        self._replay(self.pieces.embedding.backward, self.embedding[1], 0)

    def _drop_inputs(self) -> None:
        self.ledger.free(INPUTS, self._tokens_bytes)
        self.ledger.free(INPUTS, self._tokens_bytes)

    def _replay(self, events: tuple[Event, ...], stretches: tuple[Stretch, ...], layer: int) -> None:
        if self.ledger.detailed:
            self._replay_events(events, layer)
            return
        ledger, engine = self.ledger, self.engine
        base = _first_of_block(self.run.model, layer)
        for rise, net, kind, index in stretches:
            level = ledger.level  # as rise_and_settle does: nothing else is done so often
            if level + rise > ledger.peak:
                ledger.reach(level + rise)
            ledger.level = level + net
            if kind == GRADIENT:
                engine.gradient(base + index if index >= 0 else ~index)
            elif kind == PRODUCT:
                self._workspace(2)
            elif kind > 0:
                engine.module(kind)

    def _replay_events(self, events: tuple[Event, ...], layer: int) -> None:
        ledger, engine = self.ledger, self.engine
        indices = _gradient_indices(self.run.model)
        base = _first_of_block(self.run.model, layer)
        for kind, size, what in events:
            if kind == ALLOC:
                assert isinstance(what, Term)
                ledger.event(what, size, 1)
            elif kind == FREE:
                assert isinstance(what, Term)
                ledger.event(what, -size, -1)
            elif kind == GRADIENT:
                assert isinstance(what, str)
                index = indices[what]
                engine.gradient(base + index if index >= 0 else ~index)
            elif kind == PRODUCT:
                self._workspace(2)
            elif engine.follows_modules and acts(self.run.model, kind, what):
                engine.module(kind)


def _first_of_block(model: ModelShape, layer: int) -> int:
    """Index of a block's first parameter, in torch's order; the blocks are alike."""
    return len(model.embedding_parameters) + layer * len(model.block_parameters)


@lru_cache(maxsize=64)
def _gradient_indices(model: ModelShape) -> dict[str, int]:
    """Index of each parameter: within its block, or the complement of its index in the model."""
    indices = {parameter.name: index for index, parameter in enumerate(model.block_parameters)}
    first_of_head = _first_of_block(model, model.num_layers)
    for index, parameter in enumerate(model.embedding_parameters):
        indices[parameter.name] = ~index
    for index, parameter in enumerate(model.head_parameters):
        indices[parameter.name] = ~(first_of_head + index)
    return indices


@lru_cache(maxsize=1024)
def _compress(
    model: ModelShape, program: Program, gradients: bool, modules: bool
) -> tuple[tuple[Stretch, ...], tuple[Stretch, ...]]:
    """Forward and backward of a piece as stretches, cut where the engine wants to be called."""
    indices = _gradient_indices(model)

    def compress(events: tuple[Event, ...]) -> tuple[Stretch, ...]:
        stretches: list[Stretch] = []
        level = rise = 0
        for kind, size, what in events:
            if kind == ALLOC:
                level += size
                rise = max(rise, level)
            elif kind == FREE:
                level -= size
            elif (
                kind == PRODUCT
                or (kind == GRADIENT and gradients)
                or (kind != GRADIENT and modules and acts(model, kind, what))
            ):
                index = indices[what] if kind == GRADIENT and isinstance(what, str) else -1
                stretches.append((rise, level, kind, index))
                level = rise = 0
        stretches.append((rise, level, -1, -1))
        return tuple(stretches)

    return compress(program.forward), compress(program.backward)
