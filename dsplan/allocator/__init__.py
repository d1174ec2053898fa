"""torch's allocators, replayed: which bytes of the device and of the pinned host memory a run takes.

The rules are those of torch 2.11 to 2.13 (``c10/cuda/CUDACachingAllocator.cpp``, ``c10/core/AllocatorConfig.h`` and
``aten/src/ATen/core/CachingHostAllocator.h``), followed without torch and without a device. Every size is in bytes.
"""

from dsplan.allocator.blocks import Block, SegmentState
from dsplan.allocator.caching import CachingAllocator
from dsplan.allocator.errors import OutOfDeviceMemory
from dsplan.allocator.pinned import PinnedAllocator, PinnedBlock
from dsplan.allocator.settings import AllocatorSettings, parse_settings

__all__ = [
    "AllocatorSettings",
    "Block",
    "CachingAllocator",
    "OutOfDeviceMemory",
    "PinnedAllocator",
    "PinnedBlock",
    "SegmentState",
    "parse_settings",
]
