"""What operators return, remembered by what their arguments are like.

torch remembers the same (torch/_subclasses/fake_tensor.py, FakeTensorMode._cached_dispatch_impl), in a way that takes
most of a dry run's time: it describes each argument anew, by seventeen properties, in Python. This stands in front of
it, with a key that is as fine where it matters and quickly made. What torch does not remember goes the long way, but
for two kinds of which it is known why: what is written into ``out=``, and ``_unsafe_view``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch._subclasses._fake_tensor_utils import _CacheKeyState
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, _BypassDispatchCache, _DispatchCacheValidEntry

from runner.device.fake.light import Template, empty, template_of, view

aten = torch.ops.aten
#: Beside numbers: what is equal only to what means the same.
_PLAIN = frozenset({type(None), str, torch.dtype, torch.device, torch.layout, torch.memory_format})
_NUMBERS = frozenset({int, float, bool, complex})  # 1 == 1.0 == True: their types go into the key
_UNSAFE_VIEW = aten._unsafe_view.default
#: Views that begin where their argument does, or so many values later, wherever that is. For others, and for what
#: returns no view, see :func:`key_of`.
_FROM_THERE = frozenset(
    {
        *(_UNSAFE_VIEW, aten.view.default, aten.detach.default, aten.alias.default, aten.expand.default),
        *(aten.t.default, aten.transpose.int, aten.permute.default, aten.slice.Tensor, aten.select.int),
        *(aten.unsqueeze.default, aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims),
        *(aten.split.Tensor, aten.split_with_sizes.default, aten.unbind.int),
    }
)
_dispatch_keys = torch._C._dispatch_keys

Key: TypeAlias = "tuple[Any, ...]"
_NEW: Any = object()


def key_of(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Key | None:
    """What the result of ``func`` depends on; None where there may be more to it.

    As FakeTensorMode._cache_key. Of a tensor, the dispatch keys tell what extract_tensor_metadata asks for one by one
    (sparse, quantized, conjugated, negated, made in inference mode), and shape and strides its memory format. Where in
    its storage it lies, and how long that is, matters to views alone.
    """
    parts: list[Any] = [func, torch.get_default_dtype(), torch._C._get_default_device()]
    placed = func.is_view and func not in _FROM_THERE
    if not _describe(args, parts, placed):
        return None
    for name, value in kwargs.items():
        parts.append(name)
        if not _describe((value,), parts, placed):
            return None
    return tuple(parts)


def _describe(values: Any, parts: list[Any], placed: bool) -> bool:
    """Append what the values are like; False where one of them is not to be remembered."""
    for value in values:
        kind = type(value)
        if kind is FakeTensor:
            if value.constant is not None:
                return False
            keys = _dispatch_keys(value).raw_repr()
            parts.append(
                (value.shape, value.stride(), value.dtype, value._fake_device, value.requires_grad, keys)
                if not placed
                else (
                    *(value.shape, value.stride(), value.dtype, value._fake_device, value.requires_grad, keys),
                    *(value.storage_offset(), value.untyped_storage().nbytes()),
                )
            )
        elif kind in _NUMBERS:
            parts += (kind, value)
        elif kind in _PLAIN:
            parts.append(value)
        elif kind is list or kind is tuple or kind is torch.Size:
            inner: list[Any] = []
            if not _describe(value, inner, placed):
                return False
            parts.append(tuple(inner))
        else:
            return False
    return True


class Result:
    """How one result of an operator is made again, for arguments that are like those that it was first made for."""

    __slots__ = ("argument", "constant", "distance", "dtype", "shape", "stride", "template", "view_of")

    def __init__(self, first: Any, args: tuple[Any, ...], view_of: int | None, template: Template | None) -> None:
        #: The result is this argument itself.
        self.argument = next((index for index, each in enumerate(args) if each is first), None)
        #: It lies in the storage of this argument; None: in one of its own.
        self.view_of = view_of
        #: What a fake tensor on its device has; None: it is no tensor, but this constant.
        self.template = template
        self.constant = first if template is None else None
        if template is not None:
            self.shape, self.stride, self.dtype = tuple(first.shape), first.stride(), first.dtype
            #: From where the argument begins to where the result does.
            self.distance = 0 if view_of is None else first.storage_offset() - args[view_of].storage_offset()

    def made(self, args: tuple[Any, ...]) -> Any:
        """As FakeTensorMode._get_output_tensor_from_cache_entry."""
        if self.argument is not None:
            return args[self.argument]
        if self.template is None:
            return self.constant
        if self.view_of is None:
            return empty(self.shape, self.stride, self.dtype, self.template)
        base = args[self.view_of]
        offset = base.storage_offset() + self.distance
        return view(base, self.shape, self.stride, offset, self.dtype, self.template)


class Known:
    """What is known of an operator for such arguments; ``taken`` is for who asks, and kept with it."""

    __slots__ = ("out", "results", "single", "taken")

    def __init__(self, results: list[Result], *, single: bool, out: bool = False) -> None:
        self.results = results
        self.single = results[0] if single else None
        #: It returns what it was given to write into.
        self.out = out
        self.taken: Any = None

    def made(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The result, as the operator returns it."""
        if self.out:
            return kwargs["out"]
        if self.single is not None:
            return self.single.made(args)
        return [each.made(args) for each in self.results]


class Recall:
    """What is remembered in one process, by :func:`key_of`; None: it goes the long way."""

    def __init__(self) -> None:
        self._known: dict[Key, Known | None] = {}

    def answer(
        self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], long_way: Callable[..., Any]
    ) -> tuple[Any, Known | None]:
        """The result of ``func``, and what is remembered of it; ``long_way(func, args, kwargs)`` finds it out."""
        key = key_of(func, args, kwargs)
        if key is None:
            return long_way(func, args, kwargs), None
        known = self._known.get(key, _NEW)
        if known is _NEW:
            result = long_way(func, args, kwargs)
            known = self._known[key] = _known(key, func, args, kwargs, result)
            return result, known
        if known is None:
            return long_way(func, args, kwargs), None
        return known.made(args, kwargs), known


def _known(key: Key, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> Known | None:
    mode = torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE)
    several = isinstance(result, (tuple, list))
    leaves: Any = result if several else (result,)
    if mode is None or not all(each is None or isinstance(each, int) or _is_plain(each) for each in leaves):
        return None
    if result is kwargs.get("out", mode):  # torch: "kwarg aliases output"
        return Known([], single=False, out=True) if key_of(func, args, kwargs) == key else None
    if func is not _UNSAFE_VIEW and not _remembers(mode, func, args, kwargs):
        return None
    view_of = None
    if func.is_view or func is _UNSAFE_VIEW:  # of one tensor, as torch says
        (view_of,) = (index for index, each in enumerate(args) if isinstance(each, torch.Tensor))
    results = [
        Result(each, args, view_of, template_of(mode, each.fake_device) if isinstance(each, FakeTensor) else None)
        for each in leaves
    ]
    return Known(results, single=not several)


def _is_plain(value: Any) -> bool:
    """Whether it is a fake tensor as :mod:`light` makes them."""
    return (
        isinstance(value, FakeTensor)
        and value.layout is torch.strided
        and value.constant is None
        and not (value.requires_grad or value.is_conj() or value.is_neg())
    )


def _remembers(mode: FakeTensorMode, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether torch keeps what it has just answered."""
    try:
        key = mode._cache_key(_CacheKeyState(mode.shape_env), func, args, kwargs)
    except _BypassDispatchCache:
        return False
    return isinstance(FakeTensorMode.cache.get(key), _DispatchCacheValidEntry)
