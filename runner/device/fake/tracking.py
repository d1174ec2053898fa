"""Sees every operator, takes from memory what its results are made of, and gives it back when they die."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import CodeType
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, in_kernel_invocation_manager
from torch.utils._python_dispatch import TorchDispatchMode

from runner.device.fake import lost
from runner.device.fake.accumulation import ADD, adds_in_place
from runner.device.fake.answers import Answers
from runner.device.fake.collectives import COLLECTIVES, any_known
from runner.device.fake.hidden import HIDDEN, Workspaces, transients
from runner.device.fake.light import fake, template_of
from runner.device.fake.memory import DEVICE, LOCKED, PAGEABLE, PINNED, Allocation, Cause, Memory
from runner.device.fake.recall import Known, Recall
from runner.device.fake.source import named, owner

aten = torch.ops.aten
_DEVICE_OF = torch.ops.prim.device.default
_ITEM = aten._local_scalar_dense.default
_EQUAL = aten.equal.default
_COPY = aten.copy_.default
_CAT = aten.cat.default
#: Tensors, from where on fake tensors take longer to look up what is known of a concatenation than it takes.
_MANY = 8
#: Uninitialised instead: of a fake tensor nobody sees the difference. What fake tensors do for these is written in
#: Python (torch/_refs, ones), and would come back to torch.full and torch.empty, which zero.Init has replaced by
#: constructors that cast.
_FILLED = frozenset({aten.ones.default, aten.zeros.default})
_EMPTY = aten.empty.memory_format
_CASTS = frozenset({aten._to_copy.default, _COPY})
#: Takes its mask before its output (aten/src/ATen/native/cuda/Dropout.cu, dropout_cuda), and returns them in that order
#: reversed: which of them gets a cached block depends on it.
_DROPOUT = aten.native_dropout.default
_LOCKS: ContextVar[bool] = ContextVar("locks", default=False)


@contextmanager
def page_locked() -> Iterator[None]:
    """Host tensors that are made here are locked with mlock(2)."""
    token = _LOCKS.set(True)
    try:
        yield
    finally:
        _LOCKS.reset(token)


class _Reference(weakref.ref):  # type: ignore[type-arg]
    """A weak reference to a storage that knows what it holds."""

    __slots__ = ("allocation", "key", "size_bytes")
    allocation: Allocation
    key: int
    size_bytes: int


class Tracker(TorchDispatchMode):
    """Feeds :class:`Memory` with the storages of fake tensors. Entered inside FakeTensorMode, so that it sees
    what the program asks for and not what fake tensors do to find an answer.

    ``device_type`` is where the model runs: fake tensors there are device memory, all others host memory.
    """

    def __init__(self, memory: Memory, device_type: str, answers: Answers, workspaces: Workspaces) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._memory = memory
        self._device_type = device_type
        self.answers = answers
        self._workspaces = workspaces
        self._one_pool = device_type == "cpu"
        self._recall = Recall()
        self._causes: dict[tuple[Any, int, int], tuple[Cause, CodeType | None]] = {}
        self._held: dict[int, _Reference] = {}
        self._busy = False
        self._died: list[_Reference] = []

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: tuple[type, ...],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is _DEVICE_OF and type(args[0]) is FakeTensor:  # C++ asks for it before almost every operator
            return args[0]._fake_device
        try:
            return self._run(func, args, kwargs)
        except BaseException as error:
            lost.tell_of(error)
            raise

    def _run(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any] | None) -> Any:
        if func is _ITEM and getattr(args[0], "constant", None) is None:
            return self.answers.item(args[0])
        if func is _EQUAL:
            return self.answers.equal()
        if func is ADD and not self._one_pool and adds_in_place(args, kwargs):  # a real run on the CPU is watched too
            torch.ops.aten.add_.Tensor(*args)
            return args[0]
        kwargs = dict(kwargs) if kwargs else {}
        pinned = kwargs.pop("pin_memory", None) is True and not self._one_pool
        known = None
        if func in _FILLED:
            wanted = {name: value for name, value in kwargs.items() if value is not None}
            result, known = self._recall.answer(_EMPTY, args, wanted, _long_way)
        elif func is _CAT and len(args[0]) > _MANY:
            result = _cat(*args, **kwargs)
        elif func in COLLECTIVES and not kwargs and not any_known(args):
            result = COLLECTIVES[func](*args)
        else:
            result, known = self._recall.answer(func, args, kwargs, _long_way)
        self._see_results(func, result, PINNED if pinned else LOCKED if _LOCKS.get() else PAGEABLE)
        if func in HIDDEN and not self._one_pool:
            self._see_hidden(func, args, kwargs, result, known)
        return result

    def place_of(self, tensor: torch.Tensor) -> str | None:
        """Where the tensor's storage is held; None where it is not known."""
        reference = self._held.get(tensor.untyped_storage()._cdata)
        return None if reference is None else reference.allocation.place

    def record_stream(self, tensor: torch.Tensor, stream: int) -> None:
        """As torch.Tensor.record_stream, with the stream's number."""
        reference = self._held.get(tensor.untyped_storage()._cdata)
        if reference is not None and reference.allocation.place == DEVICE:
            self._memory.allocator.record_stream(reference.allocation.block, stream)

    def _see_results(self, func: Callable[..., Any], result: Any, host_place: str) -> None:
        cause: Cause | None = None
        leaves = result if isinstance(result, (tuple, list)) else (result,)
        for leaf in reversed(leaves) if func is _DROPOUT else leaves:
            if not isinstance(leaf, FakeTensor) or leaf.fake_device.type == "meta":
                continue
            storage = leaf.untyped_storage()
            key, size = storage._cdata, storage.nbytes()
            known = self._held.get(key)
            if known is not None and known.size_bytes == size:
                continue
            cause = cause or self._cause(func)
            if known is not None:
                self._release(known)
            place = DEVICE if leaf.fake_device.type == self._device_type else host_place
            self._hold(storage, key, size, place, cause, leaf.dtype)

    def _see_hidden(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], result: Any, known: Known | None
    ) -> None:
        """What the kernel takes beside its results; where the arguments are like earlier ones, so is that."""
        for wanted in self._workspaces.wanted(func, args, self._memory.stream):
            self._memory.allocate(DEVICE, wanted, Cause("workspace", "matrix library", "CublasHandlePool.cpp"))
        parts = None if known is None else known.taken
        if parts is None:
            parts = list(transients(func, args, kwargs, result, self._workspaces.kernels))
            if known is not None:
                known.taken = parts
        if not parts:
            return
        cause = self._cause(func)
        for part in parts:
            held = [self._memory.allocate(place, size, cause) for place, size in part]
            for allocation in reversed(held):
                self._memory.free(allocation)

    def _cause(self, func: Callable[..., Any]) -> Cause:
        code, line = owner(3)
        found = self._causes.get((func, id(code), line))
        if found is None:
            found = Cause(str(func).removeprefix("aten."), *named(code, line)), code  # which keeps its id its own
            self._causes[func, id(code), line] = found
        return found[0]

    def _hold(self, storage: Any, key: int, size: int, place: str, cause: Cause, dtype: torch.dtype) -> None:
        self._busy = True
        reference = _Reference(storage, self._storage_died)
        reference.key = key
        reference.size_bytes = size
        try:
            reference.allocation = self._memory.allocate(place, size, cause, str(dtype).removeprefix("torch."))
            self._held[key] = reference
        finally:
            self._busy = False
        while self._died:
            self._release(self._died.pop())

    def _storage_died(self, reference: Any) -> None:
        if self._busy:  # the garbage collector came while an allocation was being made
            self._died.append(reference)
        else:
            self._release(reference)

    def _release(self, reference: _Reference) -> None:
        if self._held.get(reference.key) is reference:
            del self._held[reference.key]
        self._memory.free(reference.allocation)


def _long_way(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """As fake tensors answer it, but that they keep what is known of numbers when those are copied or moved."""
    elsewhere = bool(args) and (func in _CASTS or kwargs.get("device") is not None)
    constant = getattr(args[0], "constant", None) if elsewhere else None
    if constant is None:
        result = func(*args, **kwargs)
    else:  # fake tensors would compute it, for which the pretend device has no kernels
        args[0].constant = None
        result = func(*args, **kwargs)
        args[0].constant = constant
    if func is _COPY:
        _copy_number(args[0], args[1])
    return result


def _cat(tensors: list[Any], dim: int = 0) -> Any:
    """As fake tensors do it when they see the shapes for the first time: stage 3 joins a part of every rank."""
    first = tensors[0]
    if not all(type(each) is FakeTensor and each.fake_device == first.fake_device for each in tensors):
        return _CAT(tensors, dim)
    with in_kernel_invocation_manager(first.fake_mode):
        joined = _CAT(tensors, dim)
    return fake(joined, template_of(first.fake_mode, first.fake_device))


def _copy_number(target: Any, source: Any) -> None:
    """Whole numbers on the host that are known stay known when they are copied: fake tensors forget them, and
    deepspeed/runtime/activation_checkpointing/checkpointing.py keeps the shapes of activations in a buffer."""
    known = getattr(source, "constant", None)
    if (
        known is None
        or target.dtype is not known.dtype
        or target.dtype.is_floating_point
        or target.shape != known.shape
        or target.fake_device.type != "cpu"
    ):
        return
    target.constant = known
    target.fake_mode.fake_tensor_converter.add_constant_storage_mapping(target)
