"""Tape: the life of every tensor through a forward and a backward pass, without running either.

Operators (``dsplan.operators``) allocate their outputs, save what their backward needs and push the
backward itself. The tape keeps reference counts, so a storage dies exactly when the last of program,
saved tensor and gradient lets go of it, as in torch's autograd engine. The result is a list of
events that the walk replays for every layer alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from dsplan.kernels import Kernels
from dsplan.ledger import Term

ALLOC, FREE, GRADIENT, ENTER, LEAVE, ENTER_BACKWARD, LEAVE_BACKWARD, PRODUCT = range(8)

#: (kind, bytes, what): what is the Term of ALLOC and FREE, a parameter's or module's name otherwise.
Event = tuple[int, int, "Term | str"]


class Storage:
    """Bytes on the device with a count of who holds them; ``silent`` ones are never allocated.

    ``is_view``: autograd knows the tensor as a view, whose base counts as another holder of the same storage.
    """

    __slots__ = ("is_view", "references", "silent", "size", "term")

    def __init__(self, size: int, term: Term, silent: bool) -> None:
        self.size = size
        self.term = term
        self.silent = silent
        self.is_view = False
        self.references = 1


class Tensor:
    """A node's output: an identity for autograd over a storage that views may share."""

    __slots__ = ("held", "storage")

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.held = True


class Saved:
    """A tensor kept for the backward pass; empty when the pass saves nothing.

    ``frame``: the second run of a checkpointed function that has saved it, None outside of one.
    """

    __slots__ = ("frame", "storage")

    def __init__(self, storage: Storage | None, frame: Frame | None = None) -> None:
        self.storage = storage
        self.frame = frame


class Frame:
    """The second run of a checkpointed function: its ``input`` goes with the last tensor that it has ``saved``.

    Each of them knows the frame, which has the input (torch/utils/checkpoint.py, _CheckpointFrame.input_saver).
    """

    __slots__ = ("held", "saved")

    def __init__(self, held: Storage) -> None:
        self.held: Storage | None = held
        self.saved = 0


Backward = Callable[[Storage], None]
#: The output of an operator and what its backward does; or what is marked where the backward pass comes by.
Node = tuple[Tensor, Backward] | tuple[int, str]


@dataclass
class Tape:
    """Records one program; ``events`` is what it did."""

    kernels: Kernels
    events: list[Event] = field(default_factory=list)
    saving: bool = True
    #: Whether it is marked where a submodule is entered and left, which nothing but stage 3 asks for.
    modules: bool = True
    #: Whether the nodes that run have what torch's checkpoint recomputed: theirs alone, gone when their function ends.
    recomputed: bool = False
    _nodes: list[Node] = field(default_factory=list)
    _gradients: dict[int, Storage] = field(default_factory=dict)
    _saves: int = 0
    _saves_of_nodes: int = 0  # made by the nodes recorded so far
    _num_until_saving: int = 0  # nodes up to the last one that has saved something
    _stop_after_saves: int | None = None
    _stopped: bool = False
    #: The second run under way, where what it saves holds its input.
    _frame: Frame | None = None

    # The program's side: tensors and what it holds.

    def allocate(self, size: int, term: Term) -> Storage:
        """A new storage of ``size`` bytes, held once by whoever asked."""
        rounded = self.kernels.rounded(size)
        if not self._stopped:
            self.events.append((ALLOC, rounded, term))
        return Storage(rounded, term, self._stopped)

    def tensor(self, size: int, term: Term) -> Tensor:
        """A new tensor, held by the program until :meth:`drop`."""
        return Tensor(self.allocate(size, term))

    def view(self, storage: Storage) -> Tensor:
        """A tensor over an existing storage; it holds it too."""
        storage.references += 1
        return Tensor(storage)

    def drop(self, *tensors: Tensor) -> None:
        """The program's last reference to each tensor goes."""
        for tensor in tensors:
            if tensor.held:
                tensor.held = False
                self.release(tensor.storage)

    def hold(self, storage: Storage) -> Storage:
        storage.references += 1
        return storage

    def release(self, storage: Storage) -> None:
        storage.references -= 1
        if storage.references == 0 and not storage.silent:
            self.events.append((FREE, storage.size, storage.term))

    def temporary(self, size: int, term: Term) -> None:
        """Allocated and freed within one operator."""
        self.temporaries((size,), term)

    def temporaries(self, sizes: Iterable[int], term: Term) -> None:
        """Several that live at once within one operator, which destroys them last first."""
        for taken in reversed([self.allocate(size, term) for size in sizes]):
            self.release(taken)

    def mark(self, kind: int, name: str) -> None:
        if not self._stopped:
            self.events.append((kind, 0, name))

    # Autograd's side: saved tensors, nodes, gradients.

    def save(self, tensor: Tensor) -> Saved:
        """Keep the tensor's storage for the backward pass."""
        self._saves += 1
        if not self.saving:
            return Saved(None)
        saved = Saved(self.hold(tensor.storage), self._frame)
        if self._frame is not None:
            self._frame.saved += 1
        if self._saves == self._stop_after_saves:
            self._stopped = True  # what follows is not recomputed: no kernel runs, nothing is allocated
        return saved

    def forget(self, *saved: Saved) -> None:
        """Saved tensors are released once their node has run."""
        for item in saved:
            if item.storage is not None:
                self.release(item.storage)
                item.storage = None
                if item.frame is not None:
                    self._leave(item.frame)

    def _leave(self, frame: Frame) -> None:
        """One that ``frame`` has saved has gone; with the last of them its input does."""
        frame.saved -= 1
        if frame.saved == 0 and frame.held is not None:
            self.release(frame.held)
            frame.held = None

    def node(self, output: Tensor, backward: Backward) -> Tensor:
        """``backward`` gets the gradient of ``output``, owns it, and must release it."""
        if self.saving:
            self._nodes.append((output, backward))
            if self._saves != self._saves_of_nodes:
                self._saves_of_nodes = self._saves
                self._num_until_saving = len(self._nodes)
        return output

    def module(self, name: str, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """Run a submodule: DeepSpeed's stage 3 hooks every one, forward and backward."""
        if not self.modules:
            return function(x)
        self.mark(ENTER, name)
        self.hook(LEAVE_BACKWARD, name)
        output = function(x)
        self.hook(ENTER_BACKWARD, name)
        self.mark(LEAVE, name)
        return output

    def hook(self, kind: int, name: str) -> None:
        """Mark ``name`` where the backward pass comes by."""
        if self.saving and self.modules:
            self._nodes.append((kind, name))

    def give(self, tensor: Tensor, gradient: Storage) -> None:
        """Hand over one reference to a gradient of ``tensor``; a second one is added to the first.

        In place only when nobody else holds the first (torch/csrc/autograd/input_buffer.cpp, can_accumulate_inplace);
        the base of a view does.
        """
        first = self._gradients.get(id(tensor))
        if first is None:
            self._gradients[id(tensor)] = gradient
        elif self.kernels.accumulates_in_place and first.references == 1 and not first.is_view:
            self.release(gradient)
        else:
            total = self.allocate(first.size, first.term)
            self.release(first)
            self.release(gradient)
            self._gradients[id(tensor)] = total

    def parameter_gradient(self, name: str) -> None:
        """The gradient just allocated for a parameter goes to the engine, which owns it from here."""
        self.mark(GRADIENT, name)

    def run_backward(self, output: Tensor, gradient: Storage) -> None:
        """Run every node recorded so far, last first, from the gradient of ``output``."""
        nodes, self._nodes = self._nodes, []
        self._run(nodes, output, gradient)

    def _run(self, nodes: list[Node], output: Tensor | None, gradient: Storage) -> None:
        if output is not None:
            self._gradients[id(output)] = gradient
        for node in reversed(nodes):
            if isinstance(node[0], int):
                self.mark(*node)
                continue
            incoming = self._gradients.pop(id(node[0]), None)
            if incoming is not None:
                node[1](incoming)

    def take_gradient(self, tensor: Tensor) -> Storage | None:
        """The gradient that has arrived at a tensor no node produced."""
        return self._gradients.pop(id(tensor), None)

    # Activation checkpointing.

    def checkpoint(self, function: Callable[[Tensor], Tensor], x: Tensor, *, stops_early: bool) -> Tensor:
        """Run ``function`` without saving, keep its input, and run it again in the backward pass.

        ``stops_early``: torch's non-reentrant checkpoint ends the second run at the last tensor that
        backward needs (torch/utils/checkpoint.py ``early_stop``); DeepSpeed's, which is reentrant,
        runs to the end and holds the output too.
        """
        before, self._saves = self._saves, 0
        saving, self.saving = self.saving, False
        output = function(x)
        self.saving = saving
        num_saves, self._saves = self._saves, before + 1
        kept = Saved(self.hold(x.storage)) if saving else Saved(None)

        def backward(gradient: Storage) -> None:
            self._recompute(function, x, kept, gradient, num_saves if stops_early else None)

        return self.node(output, backward)

    def _recompute(
        self,
        function: Callable[[Tensor], Tensor],
        x: Tensor,
        kept: Saved,
        gradient: Storage,
        stop_after_saves: int | None,
    ) -> None:
        outer, self._nodes = self._nodes, []
        self._saves, self._stop_after_saves = 0, stop_after_saves
        self._saves_of_nodes = self._num_until_saving = 0
        assert kept.storage is not None
        inner = self.view(kept.storage)
        start = len(self.events)
        if stop_after_saves is not None:
            self._frame = Frame(inner.storage)
            inner.held = False  # the frame has it
            self.forget(kept)  # and this one is the same
        output = function(inner)
        self._stopped, self._stop_after_saves, frame, self._frame = False, None, self._frame, None
        if frame is not None:
            self.drop(output)  # the exception that stops it unwinds what had its name
        # A reentrant checkpoint is a Python function: its arguments, the gradient, live until it returns.
        held = None if stop_after_saves is not None else self.hold(gradient)
        if stop_after_saves is not None:
            # Not reentrant: the backward runs on the first run's graph, and the second run starts with the first node
            # that asks for what it had saved (torch/utils/checkpoint.py, unpack_hook).
            again, self.events[start:] = self.events[start:], []
            self._nodes, later = self._nodes[: self._num_until_saving], self._nodes[self._num_until_saving :]
            self._run(later, output, gradient)
            self.events += again
            nodes, self._nodes = self._nodes, []
            self.recomputed = True
            self._run(nodes, None, gradient)
            self.recomputed = False
        else:
            self.run_backward(output, gradient)
        self._nodes = outer
        self.drop(output)
        if held is not None:
            self.release(held)
        arrived = self.take_gradient(inner)
        if frame is not None and frame.held is not None:  # nothing was saved
            self.release(frame.held)
        self.drop(inner)
        self.forget(kept)
        if arrived is not None:
            self.give(x, arrived)
