"""The accelerator that DeepSpeed is shown: a CUDA device in all that it says of itself."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from deepspeed.accelerator.cuda_accelerator import CUDA_Accelerator

from dsplan.hardware import Accelerator
from runner.device.fake import streams as pretend
from runner.device.fake.backend import BACKEND, NAME
from runner.device.fake.memory import Memory

_OLDEST_HALF = (7, 0)  # CUDA_Accelerator.is_fp16_supported
_OLDEST_BF16 = (8, 0)
_GENERATOR_STATE_BYTES = 16  # seed and offset (aten/src/ATen/cuda/CUDAGeneratorImpl.cpp)


class PretendAccelerator(CUDA_Accelerator):  # type: ignore[misc]
    """Answers as CUDA_Accelerator would on the target; memory figures come from the emulated allocator.

    It inherits what does not touch a device (builders of operators, supported types, flags).
    """

    def __init__(self, target: Accelerator, memory: Memory, streams: pretend.Streams) -> None:
        # Not the parent's: it opens NVML.
        self._name = NAME
        self._communication_backend_name = BACKEND
        self._compile_backend = "inductor"
        self._nvtx_domains: dict[str, Any] = {}
        self._target = target
        self._memory = memory
        self._streams = streams
        capability = (target.compute_capability or "9.0").split(".")
        self._capability = (int(capability[0]), int(capability[1]))

    # Device

    def device_name(self, device_index: int | None = None) -> str:
        return NAME if device_index is None else f"{NAME}:{device_index}"

    def communication_backend_version(self) -> tuple[int, ...]:
        return (2, 27, 3)  # from here on NCCL averages in bf16 (deepspeed/runtime/constants.py)

    def device(self, device_index: int | None = None) -> torch.device:
        return torch.device(NAME, device_index or 0)

    def set_device(self, device_index: int) -> None:
        """There is one."""

    def current_device(self) -> int:
        return 0

    def current_device_name(self) -> str:
        return f"{NAME}:0"

    def device_count(self) -> int:
        return 1

    def synchronize(self, device_index: int | None = None) -> None:
        """Everything is done when it is asked for."""

    def is_available(self) -> bool:
        return True

    # Random numbers

    def set_rng_state(self, new_state: Any, device_index: int | None = None) -> None:
        """Nothing is computed, so nothing is random."""

    def get_rng_state(self, device_index: int | None = None) -> Any:
        return _GENERATOR.get_state()

    def manual_seed(self, seed: int) -> None:
        """As set_rng_state."""

    def manual_seed_all(self, seed: int) -> None:
        """As set_rng_state."""

    def initial_seed(self) -> int:
        return 0

    def default_generator(self, device_index: int) -> _Generator:
        return _GENERATOR

    # Streams

    def Stream(self, *_: Any, **__: Any) -> pretend.Stream:  # noqa: N802  # DeepSpeed's name
        return self._streams.new()

    def stream(self, stream: pretend.Stream) -> AbstractContextManager[Any]:
        return stream

    def current_stream(self, device_index: int | None = None) -> pretend.Stream:
        return self._streams.current

    def default_stream(self, device_index: int | None = None) -> pretend.Stream:
        return self._streams.default

    @property
    def Event(self) -> type[pretend.Event]:  # noqa: N802  # DeepSpeed's name
        return pretend.Event

    # Memory

    def empty_cache(self) -> None:
        self._memory.allocator.empty_cache()

    def memory_allocated(self, device_index: int | None = None) -> int:
        return self._memory.allocator.allocated_bytes

    def max_memory_allocated(self, device_index: int | None = None) -> int:
        return self._memory.allocator.peak_allocated_bytes

    def memory_reserved(self, device_index: int | None = None) -> int:
        return getattr(self._memory.allocator, "reserved_bytes", self._memory.allocator.allocated_bytes)

    def max_memory_reserved(self, device_index: int | None = None) -> int:
        return getattr(self._memory.allocator, "peak_reserved_bytes", self._memory.allocator.peak_allocated_bytes)

    memory_cached = memory_reserved
    max_memory_cached = max_memory_reserved

    def memory_stats(self, device_index: int | None = None) -> dict[str, int]:
        return {
            "allocated_bytes.all.current": self.memory_allocated(),
            "reserved_bytes.all.current": self.memory_reserved(),
        }

    def reset_peak_memory_stats(self, device_index: int | None = None) -> None:
        """The peaks are the probe's."""

    reset_max_memory_allocated = reset_peak_memory_stats
    reset_max_memory_cached = reset_peak_memory_stats

    def total_memory(self, device_index: int | None = None) -> int:
        return self._target.memory_bytes or 0

    def available_memory(self, device_index: int | None = None) -> int:
        """What NVML would show as free, were nobody else there."""
        return (self._target.usable_bytes or 0) - self._target.context_bytes - self.memory_reserved()

    # Types

    def is_bf16_supported(self) -> bool:
        return self._target.bf16

    def is_fp16_supported(self) -> bool:
        return self._capability >= _OLDEST_HALF

    def is_triton_supported(self) -> bool:
        return self._capability >= _OLDEST_BF16

    def on_accelerator(self, tensor: torch.Tensor) -> bool:
        return tensor.device.type == NAME

    def range_push(self, msg: str, domain: str | None = None, category: str | None = None) -> None:
        """Nobody profiles."""

    def range_pop(self, domain: str | None = None) -> None:
        """As range_push."""

    def lazy_call(self, callback: Callable[[], Any]) -> None:
        callback()

    def is_current_stream_capturing(self) -> bool:
        return False


class _Generator:
    """A source of random numbers that nobody draws from."""

    def get_state(self) -> Any:
        return torch.empty(_GENERATOR_STATE_BYTES, dtype=torch.uint8, device="cpu")

    def set_state(self, state: Any) -> None:
        """Nothing is computed, so nothing is random."""

    def manual_seed(self, seed: int) -> None:
        """As set_state."""


_GENERATOR = _Generator()


def _tensor_maker(dtype: torch.dtype) -> property:
    return property(lambda _: functools.partial(torch.tensor, dtype=dtype, device=f"{NAME}:0"))


for _name, _dtype in (
    ("BFloat16Tensor", torch.bfloat16),
    ("ByteTensor", torch.uint8),
    ("DoubleTensor", torch.double),
    ("FloatTensor", torch.float),
    ("HalfTensor", torch.half),
    ("IntTensor", torch.int),
    ("LongTensor", torch.long),
):
    setattr(PretendAccelerator, _name, _tensor_maker(_dtype))
