"""Fake tensors, made with the few calls that it takes: torch's constructor finds out the same anew for each.

FakeTensor.__new__ (torch/_subclasses/fake_tensor.py) normalises the device three times and sets twenty attributes
through descriptors, and a view is first made empty, in two contexts of Python's. A dry run makes hundreds of thousands.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

_META = torch.device("meta")
_DisableTorchDispatch = torch._C._DisableTorchDispatch


class Template:
    """What fake tensors on one device have from their making on, but for what their elements say."""

    __slots__ = ("attributes", "device", "mark")

    def __init__(self, mode: FakeTensorMode, device: torch.device) -> None:
        with _DisableTorchDispatch():
            element = torch.empty(0, device=_META)
        self.device = device
        #: As torch's constructor leaves them.
        self.attributes = dict(vars(FakeTensor(mode, element, device)))
        #: Who asks for an address is warned, or is refused.
        self.mark: Callable[[torch.Tensor], None] = (
            torch._C._set_warn_deprecated_on_mutable_data_ptr
            if mode._allow_unsafe_data_ptr_access
            else torch._C._set_throw_on_mutable_data_ptr
        )


_templates: dict[tuple[int, torch.device], Template] = {}


def template_of(mode: FakeTensorMode, device: torch.device) -> Template:
    """The template of the fake tensors of ``mode`` on ``device``."""
    found = _templates.get((id(mode), device))
    if found is None:
        found = _templates[id(mode), device] = Template(mode, device)  # which keeps the mode alive
    return found


def fake(element: torch.Tensor, template: Template) -> Any:
    """A fake tensor of ``element``, which is on ``meta`` and which nobody else has."""
    made = torch.Tensor._make_subclass(
        FakeTensor, element, False, dispatch_device=True, device_for_backend_keys=template.device
    )
    template.mark(made)
    made.__dict__.update(template.attributes)
    return made


def empty(shape: Sequence[int], stride: Sequence[int], dtype: torch.dtype, template: Template) -> Any:
    """A fake tensor with a storage of its own."""
    guard = _DisableTorchDispatch()
    try:
        element = torch.empty_strided(shape, stride, dtype=dtype, device=_META)
    finally:
        del guard
    return fake(element, template)


def view(
    base: Any, shape: Sequence[int], stride: Sequence[int], offset: int, dtype: torch.dtype, template: Template
) -> Any:
    """A fake tensor in the storage of ``base``; ``offset`` in values of ``dtype`` from where the storage begins."""
    guard = _DisableTorchDispatch()
    try:
        element = torch.empty_strided(shape, stride, dtype=dtype, device=_META)
        element.set_(base.untyped_storage(), offset, shape, stride)
    finally:
        del guard
    return fake(element, template)
