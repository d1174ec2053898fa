"""Walk: initialisation and training steps, in the order in which DeepSpeed and torch allocate.

The sizes are closed formulas; their lifetimes are replayed. The walk drives one engine
(``dsplan.engine``) and the programs of the model (``dsplan.activations``), and the ledger keeps
levels and peaks. A model's blocks are alike, so each block replays the same short list of stretches:
a rise, a net change, and what happens at its end.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

from dsplan.activations import INPUTS, Program, layers_vary
from dsplan.engine import Run, candidate_ranks, engine_for, programs_for
from dsplan.engine.checkpoints import checkpoints_of
from dsplan.engine.chosen_leaves import with_chosen_leaf
from dsplan.engine.gathering import MICRO_BATCHES, acts
from dsplan.engine.outline import (
    BACKWARD,
    BLOCK,
    EMBEDDING,
    FORWARD,
    HEAD,
    Batch,
    Outlines,
    WithoutBatch,
    cut_programs,
    moment_of_block,
)
from dsplan.engine.stretches import Stretch, compress, first_of_block, gradient_indices
from dsplan.engine.tracing import Interned, TracingLedger
from dsplan.engine.trained import trained_part
from dsplan.engine.varied import AUTOGRADS_THREAD, trained_run, varied_of
from dsplan.hardware import Accelerator
from dsplan.kernels import Kernels
from dsplan.ledger import PAGEABLE, PINNED, Ledger, MemoryTerm, StepMemory, Term, worst_step
from dsplan.model import ModelShape
from dsplan.overhead import LT_WORKSPACE, WORKSPACE, device_overhead
from dsplan.plan import Plan
from dsplan.tape import ALLOC, FREE, GRADIENT, PRODUCT, Event
from dsplan.workload import Workload

#: Steps that the walk takes: the first (no optimizer states yet), and enough more to be steady
#: (stage 3 records its trace in the first and prefetches from the second on).
FIRST_STEP = "first step"
STEADY_STATE = "steady state"
#: Stage 3 puts a linear layer of its own in the place of torch's (deepspeed/runtime/zero/linear.py).
STAGE_OF_OWN_LINEAR = 3


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
    return replace(run, ledger=Ledger(run.kernels, target=target), rank=rank)


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
    return WalkResult(
        steps=outlines.walk(Batch(cut, _tokens_bytes(run.plan.workload), run.kernels)),
        pinned_bytes=max([one.pinned_bytes for one in outlines.ranks]),
        pageable_bytes=max([one.pageable_bytes for one in outlines.ranks]),
        host_bytes=max([one.host_bytes for one in outlines.ranks]),
        terms=(),
    )


@lru_cache(maxsize=256)
def _outlines(key: WithoutBatch, ranks: tuple[int, ...], capacity_bytes: int | None) -> Outlines | None:
    interned = Interned()
    found = []
    for rank in ranks:
        ledger = TracingLedger(key.run.kernels, interned)
        run = replace(key.run, ledger=ledger, rank=rank, capacity_bytes=capacity_bytes)
        walk = _Outliner(run, ledger)
        if walk.checkpoints is not None:
            return None
        walk.take()
        found.append(ledger.outline())
    cuts = (walk.engine.follows_gradients, walk.engine.follows_modules)
    calls = cut_programs(run.model, walk.pieces, *cuts).calls
    return Outlines(ranks=tuple(found), cuts=cuts, calls=calls, kernels=walk.kernels)


class Walk:
    """One rank of a run, walked: its engine, and the model's programs as stretches."""

    def __init__(self, run: Run) -> None:
        whole, run = run, trained_run(run)  # what the programs are of, and what the engine knows
        self.run = run
        self.ledger = run.ledger
        self.engine = engine_for(run)
        zero = run.plan.zero
        own_linear = zero.stage == STAGE_OF_OWN_LINEAR and zero.memory_efficient_linear
        self.adds_bias = run.model.bias and not own_linear
        self.kernels = kernels = run.kernels.of_programs(zero3_linear=own_linear)
        self.pieces = programs_for(whole, kernels)
        self.varied = varied_of(whole, self.engine, kernels)
        cuts = (self.engine.follows_gradients, self.engine.follows_modules)
        self.embedding = compress(run.model, self.pieces.embedding, *cuts)
        self.block = compress(run.model, self.pieces.block, *cuts)
        # The head's gradients come first: with them ZeRO's buckets appear, whatever the blocks need.
        self.head = compress(run.model, self.pieces.head, True, self.engine.follows_modules)
        self.workspaces = 0
        #: Whether blocks run again on autograd's thread, with products that add a bias; and whether one has.
        self.recomputes = self.adds_bias and run.plan.workload.activation_checkpointing != "none"
        self.recomputed = False
        # What happens to the inputs of checkpointed blocks depends on the layer: blocks are not alike at their ends.
        self.checkpoints = checkpoints_of(run)

    def take(self) -> None:
        ledger, engine = self.ledger, self.engine
        ledger.begin_step("init")
        ledger.begin("init")
        ledger.moment = "building the model"
        (self.varied or engine).initialise()
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

    def _workspace(self, threads: int) -> None:
        # The forward thread's appears with its first product, autograd's thread brings a second one. Products with a
        # bias are the forward's; autograd's thread has them where it recomputes (_backward).
        run = self.run
        while self.workspaces < threads:
            self.workspaces += 1
            self.ledger.alloc(WORKSPACE, run.kernels.workspace_bytes)
            if self.adds_bias and self.workspaces == 1:
                self.ledger.alloc(LT_WORKSPACE, run.kernels.lt_workspace_bytes)

    def _forward(self) -> None:
        ledger = self.ledger
        ledger.begin("forward")
        ledger.moment = "embedding"
        self._take_inputs()
        self.engine.begin_forward()
        self._replay(EMBEDDING, FORWARD, 0)
        self._workspace(1)
        self._blocks(FORWARD, range(self.run.model.num_layers))
        ledger.moment = "head and loss"
        self._replay(HEAD, FORWARD, 0)
        ledger.end()

    def _backward(self) -> None:
        ledger = self.ledger
        ledger.begin("backward")
        ledger.moment = "backward of the loss and the head"
        self._replay(HEAD, BACKWARD, 0)
        if self.recomputes and not self.recomputed:
            self.recomputed = True
            self.ledger.alloc(LT_WORKSPACE, self.run.kernels.lt_workspace_bytes)
        self._blocks(BACKWARD, range(self.run.model.num_layers)[::-1])
        ledger.moment = "backward of the embedding"
        self._replay(EMBEDDING, BACKWARD, 0)

    def _take_inputs(self) -> None:
        for _ in range(2):
            self.ledger.alloc(INPUTS, _tokens_bytes(self.run.plan.workload))

    def _drop_inputs(self) -> None:
        for _ in range(2):
            self.ledger.free(INPUTS, _tokens_bytes(self.run.plan.workload))

    def _blocks(self, direction: int, layers: range) -> None:
        for layer in layers:
            self._block(direction, layer)

    def _block(self, direction: int, layer: int) -> None:
        self.ledger.moment = moment_of_block(direction, layer)
        if self.checkpoints is None:
            self._replay(BLOCK, direction, layer)
        elif direction == FORWARD:
            self.checkpoints.before_forward(layer)
            self._replay(BLOCK, direction, layer)
            self.checkpoints.after_forward(layer)
        else:
            self.checkpoints.before_backward(layer)
            self._replay(BLOCK, direction, layer)

    def _stretches(self, piece: str, direction: int) -> tuple[Stretch, ...]:
        return {EMBEDDING: self.embedding, BLOCK: self.block, HEAD: self.head}[piece][direction]

    def _replay(self, piece: str, direction: int, layer: int) -> None:
        if self.varied is not None:
            one, prefix = self.varied.of_layer(layer) if piece == BLOCK else (getattr(self.pieces, piece), "")
            self.varied.replay(one, prefix, self._workspace, backward=direction == BACKWARD, cut=piece == HEAD)
            return
        if self.ledger.detailed:
            program: Program = getattr(self.pieces, piece)
            self._replay_events(program.forward if direction == FORWARD else program.backward, layer)
            return
        stretches = self._stretches(piece, direction)
        ledger, engine = self.ledger, self.engine
        base = first_of_block(self.run.model, layer)
        for rise, net, kind, index in stretches:
            level = ledger.level  # as rise_and_settle does: nothing else is done so often
            if level + rise > ledger.peak:
                ledger.reach(level + rise)
            ledger.level = level + net
            if kind == GRADIENT:
                engine.gradient(base + index if index >= 0 else ~index)
            elif kind == PRODUCT:
                self._workspace(AUTOGRADS_THREAD)
            elif kind > 0:
                engine.module(kind)

    def _replay_events(self, events: tuple[Event, ...], layer: int) -> None:
        ledger, engine = self.ledger, self.engine
        indices = gradient_indices(self.run.model)
        base = first_of_block(self.run.model, layer)
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
                self._workspace(AUTOGRADS_THREAD)
            elif engine.follows_modules and acts(self.run.model, kind, what):
                engine.module(kind)


def _tokens_bytes(workload: Workload) -> int:
    return 8 * workload.micro_batch_size * workload.sequence_length


class _Outliner(Walk):
    """A walk without the model's programs: the engine acts as in every walk, and the ledger notes what it does."""

    def __init__(self, run: Run, ledger: TracingLedger) -> None:
        super().__init__(run)
        self.tracing = ledger

    def _take_inputs(self) -> None:
        self.tracing.tokens(appear=True)

    def _drop_inputs(self) -> None:
        self.tracing.tokens(appear=False)

    def _blocks(self, direction: int, layers: range) -> None:
        calls = tuple([(kind, index) for _, _, kind, index in self._stretches(BLOCK, direction)])
        while layers:
            self.ledger.moment = moment_of_block(direction, layers[0])
            each = None
            if self.workspaces == AUTOGRADS_THREAD or not any(kind == PRODUCT for kind, _ in calls):
                each = self.engine.blocks_at_once(layers, calls)
            if each is not None:
                self.tracing.blocks(direction, layers[0], each)
                self.ledger.moment = moment_of_block(direction, layers[-1])
                return
            self._replay(BLOCK, direction, layers[0])
            layers = layers[1:]

    def _replay(self, piece: str, direction: int, layer: int) -> None:
        ledger, engine = self.ledger, self.engine
        base = first_of_block(self.run.model, layer)
        effects = []
        self.tracing.settle()
        for _, _, kind, index in self._stretches(piece, direction):
            level = ledger.peak = ledger.level
            if kind == GRADIENT:
                engine.gradient(base + index if index >= 0 else ~index)
            elif kind == PRODUCT:
                self._workspace(AUTOGRADS_THREAD)
            elif kind > 0:
                engine.module(kind)
            effects.append((ledger.peak - level, ledger.level - level))
        self.tracing.piece(piece, direction, layer, tuple(effects))
