"""torch.autocast on the pretend device, as on CUDA: which operators cast their inputs, and the cache of casts.

torch has kernels of autocast for CUDA, and none for a PrivateUse1 device (aten/src/ATen/autocast_mode.cpp): here they
are, from the lists of operators that torch's header has for other devices to use.
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch

from runner.device.fake.backend import NAME

_HEADER = Path(torch.__file__).parent / "include" / "ATen" / "autocast_mode.h"
_KEY = "AutocastPrivateUse1"

Cast = Callable[[torch.dtype, torch.Tensor], torch.Tensor]
Kernel = Callable[..., Any]


class Casts:
    """Casts as autocast makes them (autocast_mode.cpp, cached_cast): those of fp32 weights are kept."""

    def __init__(self) -> None:
        self._kept: dict[int, tuple[weakref.ref[torch.Tensor], torch.Tensor]] = {}

    def clear(self) -> None:
        """Forget the casts: ``torch.autocast`` does on leaving the outermost context."""
        self._kept.clear()

    def cast(self, dtype: torch.dtype, tensor: torch.Tensor) -> torch.Tensor:
        """``tensor`` in ``dtype``, where autocast applies to it."""
        if not eligible(tensor) or tensor.dtype is dtype:
            return tensor
        keeps = (
            dtype is torch.get_autocast_dtype(NAME)
            and tensor.dtype is torch.float32
            and tensor.requires_grad
            and tensor.is_leaf
            and not tensor._is_view()
            and torch.is_autocast_cache_enabled()
        )
        if not keeps:
            return tensor.to(dtype)
        kept = self._kept.get(id(tensor))
        if kept is None or kept[0]() is not tensor:
            kept = self._kept[id(tensor)] = (weakref.ref(tensor), tensor.to(dtype))
        return kept[1]


def eligible(value: Any) -> bool:
    """Whether autocast casts it (autocast_mode.h, is_eligible)."""
    return (
        isinstance(value, torch.Tensor)
        and value.device.type == NAME
        and value.is_floating_point()
        and value.dtype is not torch.float64
    )


def is_on() -> bool:
    """Whether code on the pretend device runs under autocast."""
    return bool(torch.is_autocast_enabled(NAME))


def without() -> AbstractContextManager[Any]:
    """What an operator of a list runs in: its parts do not cast again (c10::impl::ExcludeDispatchKeyGuard)."""
    keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, _KEY))
    return torch._C._ExcludeDispatchKeyGuard(keys)


@contextmanager
def registered(casts: Casts) -> Iterator[None]:
    """Give the pretend device kernels of autocast, until the context is left.

    Raises:
        NotImplementedError: torch's header is missing or has other lists than those of the tested range.
    """
    rest = torch.library.Library("_", "IMPL", _KEY)  # type: ignore[no-untyped-call]
    rest.fallback(torch.library.fallthrough_kernel)  # type: ignore[no-untyped-call]
    library = torch.library.Library("aten", "IMPL", _KEY)  # type: ignore[no-untyped-call]
    for policy, name in _listed():
        overload = _overload(name)
        if overload is not None:
            library.impl(name, policy(overload, casts))  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        library._destroy()  # type: ignore[no-untyped-call]
        rest._destroy()  # type: ignore[no-untyped-call]


def _overload(name: str) -> Any:
    """torch.ops.aten's operator; None where this build of torch has none under that name."""
    packet, _, overload = name.partition(".")
    found = getattr(torch.ops.aten, packet, None)
    return None if found is None else getattr(found, overload or "default", None)


def _lower_precision(operator: Any, casts: Casts) -> Kernel:
    def kernel(*args: Any, **kwargs: Any) -> Any:
        with without():
            return operator(*_each(args, casts.cast, torch.get_autocast_dtype(NAME)), **kwargs)

    return kernel


def _fp32(operator: Any, casts: Casts) -> Kernel:
    def kernel(*args: Any, **kwargs: Any) -> Any:
        with without():
            return operator(*_each(args, casts.cast, torch.float32), **kwargs)

    return kernel


def _fp32_result(operator: Any, _casts: Casts) -> Kernel:
    """Asks for a result in fp32, unless the caller asks for another; the inputs stay."""

    def kernel(*args: Any, **kwargs: Any) -> Any:
        position = next(i for i, argument in enumerate(operator._schema.arguments) if argument.name == "dtype")
        given = args[position] if position < len(args) else kwargs.get("dtype")
        with without():
            if given is not None or not eligible(args[0]):
                return operator(*args, **kwargs)
            return operator(*args[:position], **{**kwargs, "dtype": torch.float32})

    return kernel


def _promoted(operator: Any, casts: Casts) -> Kernel:
    def kernel(*args: Any, **kwargs: Any) -> Any:
        widest = torch.get_autocast_dtype(NAME)
        if any(eligible(tensor) and tensor.dtype is torch.float32 for tensor in _tensors(args)):
            widest = torch.float32
        with without():
            return operator(*_each(args, casts.cast, widest), **kwargs)

    return kernel


def _refused(operator: Any, _casts: Casts) -> Kernel:
    def kernel(*_: Any, **__: Any) -> Any:
        raise NotImplementedError(f"the dry run does not cover {operator} under torch.autocast")

    return kernel


#: torch's lists and what they do (autocast_mode.h); ``norm`` changes its signature, which nothing here needs.
_POLICIES: dict[str, Callable[[Any, Casts], Kernel]] = {
    "AT_FORALL_LOWER_PRECISION_FP": _lower_precision,
    "AT_FORALL_FP32": _fp32,
    "AT_FORALL_FP32_SET_OPT_DTYPE": _fp32_result,
    "AT_FORALL_PROMOTE": _promoted,
}
_BY_HAND = (("norm.Scalar", _refused), ("norm.ScalarOpt_dim", _refused), ("binary_cross_entropy", _refused))


def _listed() -> Iterator[tuple[Callable[[Any, Casts], Kernel], str]]:
    try:
        header = _HEADER.read_text(encoding="utf-8")
    except OSError as error:
        raise NotImplementedError(f"the dry run needs torch's lists for autocast: {error}") from error
    for macro, policy in _POLICIES.items():
        body = re.search(rf"#define {macro}\(_\)((?:.*\\\n)+.*)", header)
        names = re.findall(r"_\((\w+)(?:,\s*(\w+))?\)", body.group(1)) if body else []
        if not names:
            raise NotImplementedError(f"the dry run needs torch's lists for autocast: no {macro} in {_HEADER}")
        for name, overload in names:
            yield policy, f"{name}.{overload}" if overload else name
    yield from ((policy, name) for name, policy in _BY_HAND)


def _each(args: tuple[Any, ...], cast: Cast, dtype: torch.dtype) -> tuple[Any, ...]:
    """The arguments, tensors and lists of tensors cast; the lists' operators have no tensors among their keywords.

    From the last to the first: torch's casts are the arguments of one call (autocast_mode.h, WrapFunction_), which its
    compiler, GCC, makes in that order. On it depend which block each gets, and in which order autograd goes back.
    """
    found = [
        cast(dtype, value)
        if isinstance(value, torch.Tensor)
        else [cast(dtype, item) if isinstance(item, torch.Tensor) else item for item in value]
        if isinstance(value, (list, tuple)) and any(isinstance(item, torch.Tensor) for item in value)
        else value
        for value in reversed(args)
    ]
    return tuple(reversed(found))


def _tensors(args: tuple[Any, ...]) -> Iterator[torch.Tensor]:
    for value in args:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from (item for item in value if isinstance(item, torch.Tensor))
