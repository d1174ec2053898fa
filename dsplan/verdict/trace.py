"""Trace: what one rank of a plan asks of its device, request by request, from the walk.

The walk adds up; here each request is written down with its stream, and each release with the request that it
returns, so that ``dsplan.allocator`` can replay them. Sizes are what the program asks for, rounded up to 512 bytes;
what the allocator makes of them is the allocator's affair.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import replace
from itertools import islice

from dsplan import buffers, states
from dsplan.attention import QKV
from dsplan.engine import Run
from dsplan.engine.chosen_leaves import with_chosen_leaf
from dsplan.engine.secondary import secondary_elements
from dsplan.engine.stage3 import Stage3
from dsplan.kernels import Kernels
from dsplan.ledger import DEVICE, Term
from dsplan.model import ModelShape
from dsplan.operators import PARAMETER_GRADIENT
from dsplan.overhead import LT_WORKSPACE, WORKSPACE
from dsplan.plan import Plan
from dsplan.units import round_up
from dsplan.verdict.expanded import Expanded
from dsplan.verdict.gathers import Changes, gathers
from dsplan.verdict.operations import EMPTY_CACHE, RELEASE, Moment, Trace
from dsplan.verdict.requests import Numbered, Release, Request
from dsplan.walk import Walk

#: Steps that are walked from the first one on that all later ones repeat: what one leaves to the next shows then.
WALKED = 3
#: Streams of a run as the trace numbers them: the default one, that of stage 3's all-gathers, that of reductions.
COMPUTE, GATHER, REDUCE = range(3)
#: Steps of a trace: what a step leaves behind can be too small, or too divided, for the next. Of 44 settings
#: (tests/gpu/ladder_settings.py) all need as much after eight steps as after fourteen, but for 0.2 % of one.
NUM_STEPS = 8
#: What the walk says while DeepSpeed empties the cache first: stage_1_and_2.py __init__ before it flattens,
#: zero/utils.py defragment before the partitions come back from the host.
_EMPTIED = {
    "flattening the parameters": states.PARAMETERS,
    "defragmenting the partitions": states.PARTITIONED_PARAMETERS,
}
#: Where reductions have a stream of their own, these are taken on it: stage_1_and_2.py average_tensor and
#: copy_grads_in_partition, stage3.py __reduce_and_partition_ipg_grads and partition_grads.
_REDUCED = (
    buffers.FLAT_BUCKET,
    buffers.SCATTER_COPY,
    buffers.SCATTER_PADDING,
    buffers.SCALED_COPY,
    buffers.COMMUNICATION_COPY,
    buffers.ACCUMULATION_COPY,
    states.GRADIENT_PARTITION,
    buffers.GPU_STAGING,
    buffers.NORM,
    buffers.OFFLOAD_CAST,
)
#: Hooks between a module's first gradient and its own end, at most.
FORGOTTEN_WITHIN = 32
FIRST_BLOCK = "forward of block 0"
#: What a step that is skipped does not take: DeepSpeed finds the overflow before it.
_UPDATE = (
    states.OPTIMIZER_STATES,
    buffers.STEP_GRADIENT,
    buffers.FLAT_GRADIENT,
    buffers.OPTIMIZER_TEMPORARY,
    buffers.NORM,
)
#: Of several of one size the first goes first: the cast copy of a sub-group once that of the next is there (stage3.py
#: _create_fp32_partitions), the temporaries of an update in the order in which they came.
_FIRST_GOES_FIRST = (buffers.CAST, buffers.OPTIMIZER_TEMPORARY)
_BLOCK = 512  # c10/cuda/CUDACachingAllocator.cpp kMinBlockSize

#: What a request goes by: its storage's number where a program made it, else its term and size.
Key = int | tuple[Term, int]


def trace(
    model: ModelShape,
    plan: Plan,
    world_size: int,
    kernels: Kernels,
    *,
    rank: int,
    capacity_bytes: int | None = None,
    num_steps: int = NUM_STEPS,
    skipped: int = 0,
) -> Trace:
    """What ``rank`` asks for while the model is built and ``num_steps`` steps are taken.

    Args:
        kernels: of the device.
        capacity_bytes: as for :func:`dsplan.walk.walk`.
        skipped: so many steps at first update nothing, until the loss scale of fp16 has settled.
    """
    model = with_chosen_leaf(model, plan.zero)
    plain = Numbered.of(kernels)
    recorder = Recorder(plain)
    run = Run(
        model=model,
        plan=plan,
        world_size=world_size,
        kernels=plain,
        ledger=recorder,
        rank=rank,
        capacity_bytes=capacity_bytes,
    )
    walk = Walk(run)
    engine, zero = walk.engine, plan.zero
    recorder.masks_after = _masks_after(model)
    recorder.empties = zero.stage > 0 and not plan.ddp
    repeats_from = engine.num_steps - 1 + skipped
    recorder.skipped = skipped
    recorder.follow(engine)
    if isinstance(engine, Stage3):
        secondary = secondary_elements(engine.sizes, zero, world_size)
        recorder.secondary = frozenset([round_up(engine.e * each, _BLOCK) for each in secondary])
    walked = engine.num_steps = min(num_steps, repeats_from + WALKED)
    if isinstance(engine, Stage3):
        engine.gathers = (*engine.gathers, *engine.gathers[-1:] * walked)[:walked]
        recorder.gathers = deque(gathers(model, zero, world_size, plan.workload, plain, walked))
    if zero.stage > 0 and zero.overlaps_communication and not plan.ddp:
        recorder.gather_stream = GATHER if isinstance(engine, Stage3) else COMPUTE
        recorder.reduce_stream = REDUCE
    walk.take()
    recorder.repeat(num_steps - walked)
    return Trace(recorder.operations, recorder.terms, recorder.moments, tuple(recorder.starts), repeats_from)


def _masks_after(model: ModelShape) -> frozenset[int]:
    """Indices of the parameters after which a causal mask follows when a model is moved: the last of an attention."""
    if not model.has_mask_buffer:
        return frozenset()
    names = [parameter.name for parameter in model.parameters]
    pairs = zip(names, [*names[1:], ""], strict=True)
    return frozenset(index for index, (name, after) in enumerate(pairs) if ".attn." in name and ".attn." not in after)


class Recorder(Expanded):
    """A ledger that writes down every request of device memory, and knows nothing of the host's."""

    def __init__(self, kernels: Kernels) -> None:
        self.operations: list[tuple[int, int]] = []
        self.terms: list[Term | None] = []
        self.moments: list[Moment] = []
        self.starts: list[int] = []
        self.gathers: deque[Changes] = deque()  # of stage 3, call by call
        self.gather_stream = COMPUTE
        self.reduce_stream = COMPUTE
        self.empties = False
        self.skipped = 0
        self._skips = False
        self._postponed: deque[int] = deque()  # optimizer states that a skipped step did not make
        self.masks_after: frozenset[int] = frozenset()
        self._moment = FIRST_BLOCK
        self._rise = 0
        self.secondary: frozenset[int] = frozenset()
        self._handed_over = False
        self._parameters: list[int] = []
        self._workspaces: list[tuple[Term, int]] = []
        self._streams: dict[Term, int] = {}
        self._held: dict[Key, deque[int]] = {}
        super().__init__(kernels)
        self.detailed = True  # the walk then hands over every event

    @property
    def moment(self) -> str:
        return self._moment

    @moment.setter
    def moment(self, text: str) -> None:
        if text != FIRST_BLOCK:
            self._take_workspaces()  # another decoder's first product came and went
        self._moment = text
        self._handed_over = text.startswith("backward of")
        if self.steps:
            self.moments.append(Moment(len(self.operations), self.steps[-1].name, self._phase_name, text))

    def begin_step(self, name: str) -> None:
        if self.steps:  # the initialisation is no step
            self.starts.append(len(self.operations))
        super().begin_step(name)

    def begin(self, phase: str) -> None:
        super().begin(phase)
        self.moment = self._moment
        self._skips = phase == "step" and len(self.steps) - 1 <= self.skipped
        self._streams = {}
        if len(self.steps) > 1:
            self._streams = {buffers.GATHERED: self.gather_stream}
            self._streams[buffers.OVERFLOW] = self.reduce_stream
            if phase == "backward":
                self._streams |= dict.fromkeys(_REDUCED, self.reduce_stream)

    def alloc(self, term: Term, size: int) -> None:
        if self._skips and term in _UPDATE:
            if term is states.OPTIMIZER_STATES:
                self._postponed.append(size)
        elif self.before(term, size):
            pass
        elif term in (WORKSPACE, LT_WORKSPACE) and size and self._phase_name == "forward":
            self._workspaces.insert(0, (term, size))  # the walk takes them a little before the first product
        elif size and term.place == DEVICE:
            self._take(term, round_up(size, _BLOCK))
            if term is buffers.STEP_GRADIENT:
                while self._postponed and self._postponed[0] == size:
                    self.alloc(states.OPTIMIZER_STATES, self._postponed.popleft())

    def free(self, term: Term, size: int) -> None:
        ignored = (self._skips and term in _UPDATE) or self.ignores(term)
        if size and term.place == DEVICE and not ignored:
            rounded = round_up(size, _BLOCK)
            self._give_back(rounded, (term, rounded), first=term in _FIRST_GOES_FIRST)
            self.after(term)

    def alloc_many(self, term: Term, sizes: Iterable[int]) -> None:
        if term is states.PARAMETERS and self.masks_after and not self._parameters:
            self._parameters = list(sizes)  # nn.Module.to moves a module's buffers right after its parameters
        elif term is states.BUFFERS and self._parameters:
            masks = iter(sizes)
            for index, size in enumerate(self._parameters):
                self.alloc(states.PARAMETERS, size)
                if index in self.masks_after:
                    self.alloc(states.BUFFERS, next(masks))
        else:
            for size in sizes:
                self.alloc(term, size)

    def free_many(self, term: Term, sizes: Iterable[int]) -> None:
        for size in sizes:  # in the order in which they came
            if size and term.place == DEVICE:
                rounded = round_up(size, _BLOCK)
                self._give_back(rounded, (term, rounded), first=True)

    def event(self, term: Term, rounded: int, count: int) -> None:
        if term is buffers.GATHERED:
            self._gather(rounded, count)
        elif isinstance(rounded, Request):
            if self._handed_over and self._hand_over(rounded):
                return
            # A parameter's gradient becomes the engine's, which knows it by its size.
            self._take(term, int(rounded), None if term is PARAMETER_GRADIENT else rounded.number)
            if term is QKV:
                self._take_workspaces()
        elif isinstance(rounded, Release):
            size = -int(rounded)
            self._give_back(size, (term, size) if term is PARAMETER_GRADIENT else rounded.number)
        elif rounded > 0:
            self._take(term, rounded)
        elif rounded < 0:
            self._give_back(-rounded, (term, -rounded))

    def move(self, source: Term, target: Term, size: int) -> None:
        rounded = round_up(size, _BLOCK)
        self._held.setdefault((target, rounded), deque()).append(self._held[source, rounded].pop())

    def rise_and_settle(self, rise: int, net: int) -> None:
        raise NotImplementedError("a trace needs every event")

    def _gather(self, size: int, count: int) -> None:
        """Stage 3 tells a hook's rise, and then the rest of its change; its buffers are the coordinator's."""
        if count > 0:
            self._rise = size
            return
        total = self._rise + size
        if total < 0 and self._rise == 0 and total != sum(self.gathers[0]) and self._forget(total):
            return
        changes = self.gathers.popleft()
        assert sum(changes) == total, "the coordinator was not asked in the walk's order"
        for change in changes:
            if change > 0:
                # partition_parameters.py _partition_param_sec: where the parameter was gathered, no stream of its own.
                self._take(buffers.GATHERED, change, stream=COMPUTE if change in self.secondary else None)
            else:
                self._give_back(-change, (buffers.GATHERED, -change), first=True)

    def repeat(self, times: int) -> None:
        """Take the last step again: it asks for the same, and returns what the step before it left."""
        if times < 1:
            return
        end, begin, before = len(self.operations), self.starts[-1], self.starts[-2]
        length = end - begin
        assert length == begin - before, "the last two steps differ"
        last, terms = self.operations[begin:], self.terms[begin:]
        moments = [moment for moment in self.moments if moment.operation >= begin]
        for number in range(1, times + 1):
            shift = number * length
            self.starts.append(begin + shift)
            self.operations += [
                (size, other + shift) if size == RELEASE and other >= before else (size, other) for size, other in last
            ]
            self.terms += terms
            self.moments += [replace(moment, operation=moment.operation + shift) for moment in moments]

    def _take_workspaces(self) -> None:
        for workspace, size in self._workspaces:
            self._take(workspace, size)
        self._workspaces = []

    def _hand_over(self, incoming: Request) -> bool:
        """A piece's program begins with the gradient that the one before it ends with: nothing happens."""
        self._handed_over = False
        kind, operation = self.operations[-1]
        if kind != RELEASE or self.operations[operation][0] != incoming:
            return False
        self.operations.pop()
        self.terms.pop()
        self.level += int(incoming)
        self._held.setdefault(incoming.number, deque()).append(operation)
        return True

    def _forget(self, total: int) -> bool:
        """Release now what the coordinator counts to a later hook: what autograd had saved goes with the first gradient
        of its module (``Stage3._forget_weights``)."""
        for number, changes in enumerate(islice(self.gathers, FORGOTTEN_WITHIN)):
            # From the first on; of a leaf each goes by itself, the last that was multiplied before the others.
            spans = ((begin, end) for begin in range(len(changes)) for end in range(begin + 1, len(changes) + 1))
            begin, end = next((span for span in spans if sum(changes[slice(*span)]) == total), (0, 0))
            if end and max(changes[begin:end]) < 0:
                for change in changes[begin:end]:
                    self._give_back(-change, (buffers.GATHERED, -change), first=True)
                rest = (*changes[:begin], *changes[end:])
                if rest:
                    self.gathers[number] = rest
                else:  # a hook that then changes nothing is not heard
                    del self.gathers[number]
                return True
        return False

    def _take(self, term: Term, size: int, number: int | None = None, stream: int | None = None) -> None:
        if self.empties and len(self.steps) == 1 and _EMPTIED.get(self._moment) is term:
            self.empties = False
            self.operations.append((EMPTY_CACHE, 0))
            self.terms.append(None)
        self.level += size
        key: Key = (term, size) if number is None else number
        held = self._held.get(key)
        if held is None:
            held = self._held[key] = deque()
        held.append(len(self.operations))
        self.operations.append((size, self._streams.get(term, COMPUTE) if stream is None else stream))
        self.terms.append(term)

    def _give_back(self, size: int, key: Key, *, first: bool = False) -> None:
        """Release one of what goes by ``key``: the ``first`` that came, or the last."""
        self.level -= size
        held = self._held[key]
        self.operations.append((RELEASE, held.popleft() if first else held.pop()))
        self.terms.append(None)
