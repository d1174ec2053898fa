"""Recorder: the walk's ledger that writes down each request of device memory, and which of them a release returns."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import replace
from itertools import islice

from dsplan import buffers, states
from dsplan.activations import STREAM
from dsplan.attention import QKV
from dsplan.kernels import Kernels
from dsplan.ledger import DEVICE, Term
from dsplan.operators import PARAMETER_GRADIENT
from dsplan.overhead import LT_WORKSPACE, WORKSPACE
from dsplan.units import round_up
from dsplan.verdict.ahead import Ahead, Signal
from dsplan.verdict.expanded import Expanded
from dsplan.verdict.gathers import Changes
from dsplan.verdict.operations import EMPTY_CACHE, RELEASE, Moment
from dsplan.verdict.requests import Placed, Release, Request

#: Streams of a run as the trace numbers them: the default one, that of stage 3's all-gathers, that of reductions, and
#: that on which offload_activations.py brings back the inputs of checkpointed blocks.
COMPUTE, GATHER, REDUCE, RESTORE = range(4)
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
FIRST_BLOCK, BACKWARD_OF = "forward of block 0", "backward of"
#: What a step that is skipped does not take: DeepSpeed finds the overflow before it.
_UPDATE = (
    states.OPTIMIZER_STATES,
    buffers.STEP_GRADIENT,
    buffers.FLAT_GRADIENT,
    buffers.OPTIMIZER_TEMPORARY,
    buffers.NORM,
)
#: Of several of one size the first goes first: the cast copy of a sub-group once that of the next is there (stage3.py
#: _create_fp32_partitions), the temporaries of an update in the order in which they came, of checkpointed inputs that
#: are kept elsewhere the oldest (dsplan/engine/checkpoints.py).
_FIRST_GOES_FIRST = (buffers.CAST, buffers.OPTIMIZER_TEMPORARY, STREAM)
BLOCK_BYTES = 512  # c10/cuda/CUDACachingAllocator.cpp kMinBlockSize

#: What a request goes by: its storage's number where a program made it, else its term and size; where it is a
#: parameter's gradient or its gathered weights, the parameter's place too.
Key = int | tuple[Term, int] | tuple[Term, int, int]
_OF_A_PARAMETER = 3  # parts of a key


def _key(term: Term, rounded: int, size: int) -> Key:
    """What a tensor of the engine's goes by, of ``size`` bytes."""
    if term in (states.GRADIENTS, buffers.GATHERED) and isinstance(size, Placed):
        return term, rounded, size.place
    return term, rounded


def _without(heard: Changes, begin: int, end: int) -> Changes:
    """``heard`` less the changes from ``begin`` to ``end``, signals not counted."""
    number = 0
    rest: list[int] = []
    for change in heard:
        if isinstance(change, Signal):
            rest.append(change)
        else:
            if not begin <= number < end:
                rest.append(change)
            number += 1
    return tuple(rest)


class Recorder(Expanded):
    """A ledger that writes down every request of device memory, and knows nothing of the host's."""

    def __init__(self, kernels: Kernels) -> None:
        self.operations: list[tuple[int, int]] = []
        self.terms: list[Term | None] = []
        self.moments: list[Moment] = []
        self.starts: list[int] = []
        self.gathers: deque[Changes] = deque()  # of stage 3, call by call
        self.ahead = Ahead()
        self.gather_stream = COMPUTE
        self.reduce_stream = COMPUTE
        self.restore_stream = COMPUTE
        self.empties = False
        self.skipped = 0
        self._skips = False
        self._postponed: deque[int] = deque()  # optimizer states that a skipped step did not make
        self.masks_after: frozenset[int] = frozenset()
        self._moment = FIRST_BLOCK
        self._rise = 0
        self.secondary: frozenset[int] = frozenset()
        self._handed_over: int | None = None  # the request of the gradient between two pieces
        self._waits = False  # a workspace, for a product of the next piece
        self._gradients: dict[int, int] = {}  # of a storage's number its latest request
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
        if text != FIRST_BLOCK and not self._waits:
            self._take_workspaces()  # another decoder's first product came and went
        self._waits = False
        self._moment = text
        self._drop_handed_over()
        if text.startswith(BACKWARD_OF) and self.moments[-1].operation < len(self.operations):
            kind, operation = self.operations[-1]
            if kind == RELEASE:
                self._handed_over = operation
                self.operations.pop()
                self.terms.pop()
        if self.steps:
            self.moments.append(Moment(len(self.operations), self.steps[-1].name, self._phase_name, text))

    def begin_step(self, name: str) -> None:
        if self.steps:  # the initialisation is no step
            self.starts.append(len(self.operations))
        super().begin_step(name)

    def begin(self, phase: str) -> None:
        super().begin(phase)
        self.moment = self._moment
        if phase != "backward":  # the pass before it ended with a wait, as does a step
            self.ahead.catch_up(len(self.operations))
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
        elif term in (WORKSPACE, LT_WORKSPACE) and size and self._is_early(term):
            self._workspaces.insert(0, (term, size))  # the walk takes them a little before the first product
            self._waits = self._phase_name == "backward"
        elif size and term.place == DEVICE:
            rounded = round_up(size, BLOCK_BYTES)
            stream = self.restore_stream if term is STREAM else None
            self._take(term, rounded, _key(term, rounded, size), stream)
            if term is buffers.STEP_GRADIENT:
                while self._postponed and self._postponed[0] == size:
                    self.alloc(states.OPTIMIZER_STATES, self._postponed.popleft())

    def free(self, term: Term, size: int) -> None:
        ignored = (self._skips and term in _UPDATE) or self.ignores(term)
        if size and term.place == DEVICE and not ignored:
            rounded = round_up(size, BLOCK_BYTES)
            self._give_back(rounded, _key(term, rounded, size), first=term in _FIRST_GOES_FIRST)
            self.after(term)

    def temporary(self, term: Term, size: int) -> None:
        if term is states.GRADIENTS:  # cloned, and the original goes
            rounded = round_up(size, BLOCK_BYTES)
            self._take(term, rounded, _key(term, rounded, size))
            self._give_back(rounded, _key(term, rounded, size), first=True)
        else:
            super().temporary(term, size)

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
            self.before_many(term)
            for size in sizes:
                self.alloc(term, size)

    def free_many(self, term: Term, sizes: Iterable[int]) -> None:
        for size in sizes:  # in the order in which they came
            if size and term.place == DEVICE:
                rounded = round_up(size, BLOCK_BYTES)
                self._give_back(rounded, _key(term, rounded, size), first=True)

    def event(self, term: Term, rounded: int, count: int) -> None:
        if self._handed_over is not None and not isinstance(rounded, Request):
            self._drop_handed_over()  # the next piece begins with something else
        if term is buffers.GATHERED:
            self._gather(rounded, count)
        elif isinstance(rounded, Request):
            if self._handed_over is not None and self._hand_over(rounded):
                return
            if term is PARAMETER_GRADIENT:  # it becomes the engine's, which knows it by its size
                self._gradients[rounded.number] = len(self.operations)
                self._take(term, int(rounded))
                return
            self._take(term, int(rounded), rounded.number)
            if term is QKV:
                self._take_workspaces()
        elif isinstance(rounded, Release):
            size = -int(rounded)
            if term is PARAMETER_GRADIENT:
                self._last(term, size, self._gradients[rounded.number])
            self._give_back(size, (term, size) if term is PARAMETER_GRADIENT else rounded.number)
        elif rounded > 0:
            self._take(term, rounded)
        elif rounded < 0:  # of gradients the oldest: a tied weight's, which waited for the embedding's
            self._give_back(-rounded, (term, -rounded), first=term is PARAMETER_GRADIENT)

    def move(self, source: Term, target: Term, size: int) -> None:
        rounded = round_up(size, BLOCK_BYTES)
        held = self._held.setdefault(_key(target, rounded, size), deque())
        held.append(self._held[_key(source, rounded, size)].pop())

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
            if isinstance(change, Signal):
                self.ahead.hear(change, len(self.operations))
                continue
            key = _key(buffers.GATHERED, abs(change), change)
            if change > 0:
                # partition_parameters.py _partition_param_sec: where the parameter was gathered, no stream of its own.
                self._take(buffers.GATHERED, change, key, COMPUTE if change in self.secondary else None)
            else:
                self._give_back(-change, key, first=True)

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
            self.ahead.repeat(begin + shift - length, begin + shift)

    def _release_of_two_streams(self, term: Term) -> None:
        """partition_parameters.py free_param, stage3.py __add_grad_to_ipg_bucket and partition_grads record a gathered
        parameter and a gradient on the other stream before they let go of it."""
        gradient = term is states.GRADIENTS
        if self._streams.get(buffers.FLAT_BUCKET if gradient else buffers.GATHERED, COMPUTE) != COMPUTE:
            self.ahead.released(len(self.operations), gradient=gradient)

    def _take_workspaces(self) -> None:
        for workspace, size in self._workspaces:
            self._take(workspace, size)
        self._workspaces = []

    def _hand_over(self, incoming: Request) -> bool:
        """A piece's program begins with the gradient that the one before it ends with: nothing happens."""
        operation = self._handed_over
        assert operation is not None
        if self.operations[operation][0] != incoming:
            self._drop_handed_over()
            return False
        self._handed_over = None
        self.level += int(incoming)
        self._held.setdefault(incoming.number, deque()).append(operation)
        return True

    def _drop_handed_over(self) -> None:
        """It was the last: it goes."""
        if self._handed_over is not None:
            self.operations.append((RELEASE, self._handed_over))
            self.terms.append(None)
            self._handed_over = None

    def _is_early(self, workspace: Term) -> bool:
        """Whether the walk takes ``workspace`` before the piece whose product needs it: in the forward pass, and that
        of products with a bias where blocks run again."""
        return self._phase_name == "forward" or (self._phase_name == "backward" and workspace is LT_WORKSPACE)

    def _last(self, term: Term, size: int, operation: int) -> None:
        """Make ``operation`` the one that is given back next of those of its size."""
        held = self._held[term, size]
        held.remove(operation)
        held.append(operation)

    def _forget(self, total: int) -> bool:
        """Release now what the coordinator counts to a later hook: what autograd had saved goes with the first gradient
        of its module (``Stage3._forget_weights``)."""
        for number, heard in enumerate(islice(self.gathers, FORGOTTEN_WITHIN)):
            changes = tuple([change for change in heard if change])
            # From the first on; of a leaf each goes by itself, the last that was multiplied before the others.
            spans = ((begin, end) for begin in range(len(changes)) for end in range(begin + 1, len(changes) + 1))
            begin, end = next((span for span in spans if sum(changes[slice(*span)]) == total), (0, 0))
            if end and max(changes[begin:end]) < 0:
                for change in changes[begin:end]:
                    self._give_back(-change, _key(buffers.GATHERED, -change, change), first=True)
                rest = _without(heard, begin, end)
                if any(rest):
                    self.gathers[number] = rest
                else:  # a hook that then changes nothing is not heard
                    del self.gathers[number]
                    if rest:
                        self.gathers[number] = (*rest, *self.gathers[number])
                return True
        return False

    def _take(self, term: Term, size: int, key: Key | None = None, stream: int | None = None) -> None:
        if self.empties and len(self.steps) == 1 and _EMPTIED.get(self._moment) is term:
            self.empties = False
            self.operations.append((EMPTY_CACHE, 0))
            self.terms.append(None)
        self.level += size
        if key is None:
            key = (term, size)
        held = self._held.get(key)
        if held is None:
            held = self._held[key] = deque()
        held.append(len(self.operations))
        self.operations.append((size, self._streams.get(term, COMPUTE) if stream is None else stream))
        self.terms.append(term)

    def _give_back(self, size: int, key: Key, *, first: bool = False) -> None:
        """Release one of what goes by ``key``: the ``first`` that came, or the last."""
        self.level -= size
        if isinstance(key, tuple) and len(key) == _OF_A_PARAMETER and len(self.steps) > 1:
            self._release_of_two_streams(key[0])
        held = self._held[key]
        self.operations.append((RELEASE, held.popleft() if first else held.pop()))
        self.terms.append(None)
