"""The stand-in for DeepSpeed's access to a drive: it locks the memory that the real one locks, and writes nothing.

Source: DeepSpeed csrc/aio/py_lib/deepspeed_py_io_handle.cpp, deepspeed_cpu_op.cpp and
csrc/pin_memory/deepspeed_pin_tensor.cpp.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from runner.device.fake.tracking import page_locked

_FOLDER = "nvme"
_OFFLOADS = ("offload_optimizer", "offload_param")


class Handle:
    """``aio_handle``: transfers end when they are waited for."""

    #: What is locked, by storage. One list for all handles; the memory is the list's, whatever becomes of its tensors
    #: (posix_memalign and mlock: exact sizes, outside of torch's pinned pool).
    _locked: dict[int, Tensor] = {}  # noqa: RUF012  # shared on purpose

    def __init__(self, **_settings: Any) -> None:
        self._under_way: list[Tensor | None] = []

    def new_cpu_locked_tensor(self, num_elem: int, example: Tensor) -> Tensor:
        with page_locked():
            locked = torch.empty(num_elem, dtype=example.dtype, device="cpu")
        self._locked[locked.untyped_storage()._cdata] = locked
        return locked

    def free_cpu_locked_tensor(self, tensor: Tensor) -> bool:
        return self._locked.pop(tensor.untyped_storage()._cdata, None) is not None

    def is_pinned(self, tensor: Tensor) -> bool:
        """Whether it can be read from and written to without a copy."""
        return tensor.device.type == "cpu" and (tensor.is_pinned() or tensor.untyped_storage()._cdata in self._locked)

    def async_pread(self, buffer: Tensor, *_file: Any) -> int:
        return self._begin(buffer)

    def async_pwrite(self, buffer: Tensor, *_file: Any) -> int:
        return self._begin(buffer)

    def wait(self) -> int:
        """How many transfers have ended."""
        ended = len(self._under_way)
        self._under_way.clear()
        return ended

    def __getattr__(self, function: str) -> Any:
        raise NotImplementedError(f"the dry run does not cover {function!r} of DeepSpeed's aio_handle")

    def _begin(self, buffer: Tensor) -> int:
        # cpu_op_desc_t: what is not locked goes through a locked copy, which lives until the transfer has ended.
        with page_locked():
            copy = None if self.is_pinned(buffer) else torch.empty(buffer.numel(), dtype=buffer.dtype, device="cpu")
        self._under_way.append(copy)
        return 0


def without_drive(ds_config: Mapping[str, Any]) -> dict[str, Any]:
    """``ds_config`` with what it offloads to NVMe in the current folder.

    DeepSpeed makes folders on the drive and deletes the files that it finds there; the dry run has no business there.
    """
    zero = ds_config.get("zero_optimization")
    if not isinstance(zero, Mapping):
        return dict(ds_config)
    moved = {
        name: {**zero[name], "nvme_path": _FOLDER}
        for name in _OFFLOADS
        if isinstance(zero.get(name), Mapping) and zero[name].get("device") == "nvme"
    }
    return {**ds_config, "zero_optimization": {**zero, **moved}}
