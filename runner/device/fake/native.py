"""Stand-ins for DeepSpeed's native operators: they compute nothing, and allocate what the real ones do.

The optimizers' kernels update in place (csrc/adam/multi_tensor_adam.cu, csrc/lion/multi_tensor_lion.cu,
csrc/adam/cpu_adam_impl.cpp, csrc/adagrad/cpu_adagrad.cpp, csrc/lion/cpu_lion_impl.cpp): nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from runner.device.fake import aio, lost, quantizer


def _nothing(*_: Any, **__: Any) -> int:
    """Updates in place, allocates nothing, and has no vector instructions (``vector_kernel_level``)."""
    return 0


#: DeepSpeed's name of an operator -> what training finds in its module.
COVERED: Mapping[str, Mapping[str, Any]] = {
    "fused_adam": {"multi_tensor_adam": _nothing},
    "fused_lion": {"multi_tensor_lion": _nothing},
    "cpu_adam": dict.fromkeys(("create_adam", "adam_update", "adam_rollback", "destroy_adam"), _nothing),
    "cpu_adagrad": dict.fromkeys(("create_adagrad", "adagrad_update", "destroy_adagrad"), _nothing),
    "cpu_lion": dict.fromkeys(("create_lion", "lion_update", "destroy_lion"), _nothing),
    # The CPU's collectives; a group of one process calls none of them.
    "deepspeed_shm_comm": dict.fromkeys(("initialize", "vector_kernel_level"), _nothing),
    "async_io": {"aio_handle": aio.Handle},
    # Loaded before async_io, which shares its list of locked tensors; there is no library to open
    # (op_builder/pin_memory_load.py).
    "pin_memory": {"__file__": None},
    "quantizer": {
        "Symmetric": quantizer.SYMMETRIC,
        "quantize": quantizer.quantize,
        "dequantize": quantizer.dequantize,
    },
}


class NativeOperator:
    """Takes the place of the module that DeepSpeed would compile."""

    def __init__(self, name: str) -> None:
        if name not in COVERED:
            raise NotImplementedError(f"the dry run does not cover DeepSpeed's operator {name!r}")
        self._name = name

    def __getattr__(self, found: str) -> Any:
        if found not in COVERED[self._name]:
            error = NotImplementedError(f"the dry run does not cover {found!r} of DeepSpeed's operator {self._name!r}")
            lost.tell_of(error)
            raise error
        return COVERED[self._name][found]
