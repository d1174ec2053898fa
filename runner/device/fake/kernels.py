"""Operators that have a kernel of their own on CUDA, where the pretend device would run elementary ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

#: aten/src/ATen/native/native_functions.yaml: dispatch of CPU and CUDA to a kernel, of all else to a composite.
_OWN_KERNELS = ("silu_backward",)


@contextmanager
def registered() -> Iterator[None]:
    """While entered, the pretend device has them: it is enough that one is registered, for none is ever called.

    A composite is only run where a device has no kernel (torch/_ops.py, resolve_key); fake tensors ask torch's shape
    functions before any kernel.
    """
    library = torch.library.Library("aten", "IMPL", "PrivateUse1")  # type: ignore[no-untyped-call]
    for name in _OWN_KERNELS:
        library.impl(name, _never)  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        library._destroy()  # type: ignore[no-untyped-call]


def _never(*_: Any) -> Any:
    raise RuntimeError("a kernel of the pretend device was called; it has none")
