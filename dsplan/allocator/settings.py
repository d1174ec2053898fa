"""PYTORCH_ALLOC_CONF and PYTORCH_CUDA_ALLOC_CONF: which options change sizes, and what they are set to.

Options, ranges and tokens are those of ``AcceleratorAllocatorConfig`` (c10/core/AllocatorConfig.h) and
``CUDAAllocatorConfig`` (c10/cuda/CUDAAllocatorConfig.h) of torch 2.13. Where torch stops with an internal assertion, or
reads a number only up to the first letter, dsplan stops with a sentence.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from dsplan.errors import InputError, nearest
from dsplan.units import MIB

KIND = "PYTORCH_CUDA_ALLOC_CONF"
NUM_INTERVALS = 16  # kRoundUpPowerOfTwoIntervals: 1 MiB to 64 GiB in powers of two
LARGE_SEGMENT_BYTES = 20 * MIB
LARGEST_SMALL_SEGMENT_MIB = 10  # kMinLargeAlloc: large_segment_size_mb has to be above it


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocatorSettings:
    """What the allocators can be told, in bytes; the defaults are torch's.

    Attributes:
        max_split_size_bytes: blocks of at least this size are never split (None: all are split).
        max_non_split_rounding_bytes: how much larger than the request a block that is not split may be.
        garbage_collection_threshold: share of the cap above which cached segments are released by age (0: never).
        expandable_segments: one growing segment for each pool and stream instead of many fixed ones.
        roundup_power2_divisions: for sizes in [1 MiB, 2 MiB), [2 MiB, 4 MiB), ...: steps between powers of two.
        large_segment_size_bytes: segment for requests from 1 to 10 MiB, and the granule of expandable ones.
        per_process_memory_fraction: share of the device that the segments may take.
        pinned_max_round_threshold_bytes: larger pinned requests are not rounded up to a power of two.
        pinned_max_cached_size_bytes: larger pinned blocks go back to the system when they are freed.
    """

    max_split_size_bytes: int | None = None
    max_non_split_rounding_bytes: int = LARGE_SEGMENT_BYTES
    garbage_collection_threshold: float = 0.0
    expandable_segments: bool = False
    roundup_power2_divisions: tuple[int, ...] = (0,) * NUM_INTERVALS
    large_segment_size_bytes: int = LARGE_SEGMENT_BYTES
    per_process_memory_fraction: float = 1.0
    pinned_max_round_threshold_bytes: int | None = None
    pinned_max_cached_size_bytes: int | None = None


#: Options that exist in torch and change no size.
NEUTRAL = (
    "pinned_use_background_threads",
    "release_lock_on_cudamalloc",
    "release_lock_on_hipmalloc",
    "pinned_use_cuda_host_register",
    "pinned_use_hip_host_register",
    "pinned_num_register_threads",
    "graph_capture_record_stream_reuse",
)
#: Options that exist in torch and change sizes in a way that is not replayed here, with the one value that is.
REFUSED = {
    "pinned_reserve_segment_size_mb": "it takes a pinned segment in advance",
    "pinned_free_catch_all": "it changes how foreign pinned pointers are freed",
    "throw_on_cudamalloc_oom": "it refuses allocations before the cache is released",
}


def parse_settings(text: str, where: str = KIND) -> AllocatorSettings:
    """The settings that ``text`` (``"max_split_size_mb:128,expandable_segments:True"``) stands for.

    Raises InputError for an unknown option, a value out of torch's range, and an option that is not replayed;
    ``where`` is what the message calls the text. Spaces are ignored, and of an option given twice the last counts.
    """
    settings = AllocatorSettings()
    # max_split_size_mb is checked against large_segment_size_mb wherever that stands, so it is read first.
    options = sorted(_options("".join(text.split()), where), key=lambda option: option[0] != "large_segment_size_mb")
    for key, value in options:
        field = f"{where}: {key}"
        if key in _READERS:
            settings = _READERS[key](settings, field, value)
        elif key in REFUSED:
            if value.casefold() != "false":
                raise InputError(f"{field}: {value!r} cannot be planned: {REFUSED[key]}; leave it out")
        elif key == "backend":
            _backend(field, value)
        elif key not in NEUTRAL:
            allowed = sorted([*_READERS, *NEUTRAL, *REFUSED, "backend"])
            near = nearest(key, allowed)
            hint = f"did you mean {' or '.join(near)}? " if near else ""
            raise InputError(f"{where}: unknown option {key!r}; {hint}allowed: {', '.join(allowed)}")
    return settings


def _options(text: str, where: str) -> list[tuple[str, str]]:
    """The options as (key, value); commas within brackets belong to the value."""
    found = []
    for part in re.findall(r"(?:\[[^\]]*\]|[^,])+", text):
        key, colon, value = part.partition(":")
        if not colon or not key or not value:
            raise InputError(f"{where}: {part!r} is not an option; write key:value, separated by commas")
        if value.count("[") != value.count("]"):
            raise InputError(f"{where}: {key}: {value!r} has a bracket that is not closed")
        found.append((key, value))
    return found


def _integer(field: str, value: str, *, at_least: int = 0) -> int:
    if not (value.isascii() and value.isdecimal()) or int(value) < at_least:
        raise InputError(f"{field}: {value!r} is not allowed; it must be an integer of at least {at_least}")
    return int(value)


def _number(field: str, value: str, allowed: str, accept: Callable[[float], bool]) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not accept(number):  # NaN is in no range
        raise InputError(f"{field}: {value!r} is not allowed; it must be a number {allowed}")
    return number


def _backend(field: str, value: str) -> None:
    if value == "native":
        return
    if value in ("cudaMallocAsync", "hipMallocAsync"):
        raise InputError(f"{field}: {value!r} cannot be planned: the driver's own pools are not replayed; use native")
    raise InputError(f"{field}: unknown value {value!r}; allowed: native")


def _large_segment(settings: AllocatorSettings, field: str, value: str) -> AllocatorSettings:
    size = _integer(field, value, at_least=LARGEST_SMALL_SEGMENT_MIB + 1) * MIB
    return replace(settings, large_segment_size_bytes=size)


def _max_split(settings: AllocatorSettings, field: str, value: str) -> AllocatorSettings:
    size = _integer(field, value, at_least=settings.large_segment_size_bytes // MIB) * MIB
    return replace(settings, max_split_size_bytes=size)


def _max_non_split_rounding(settings: AllocatorSettings, field: str, value: str) -> AllocatorSettings:
    size = _integer(field, value, at_least=settings.large_segment_size_bytes // MIB) * MIB
    return replace(settings, max_non_split_rounding_bytes=size)


def _garbage_collection(settings: AllocatorSettings, field: str, value: str) -> AllocatorSettings:
    share = _number(field, value, "above 0 and below 1", lambda number: 0 < number < 1)
    return replace(settings, garbage_collection_threshold=share)


def _memory_fraction(settings: AllocatorSettings, field: str, value: str) -> AllocatorSettings:
    share = _number(field, value, "from 0 to 1", lambda number: 0 <= number <= 1)
    return replace(settings, per_process_memory_fraction=share)


def _expandable(settings: AllocatorSettings, field: str, value: str) -> AllocatorSettings:
    if value not in ("True", "False"):
        raise InputError(f"{field}: {value!r} is not allowed; it must be True or False, spelled so")
    return replace(settings, expandable_segments=value == "True")


def _pinned_round(settings: AllocatorSettings, field: str, value: str) -> AllocatorSettings:
    return replace(settings, pinned_max_round_threshold_bytes=_integer(field, value) * MIB)


def _pinned_cached(settings: AllocatorSettings, field: str, value: str) -> AllocatorSettings:
    return replace(settings, pinned_max_cached_size_bytes=_integer(field, value) * MIB)


def _power_of_two(field: str, value: str, *, or_zero: bool = False) -> int:
    number = _integer(field, value, at_least=0 if or_zero else 1)
    if number & (number - 1):
        zero = ", or 0 for none" if or_zero else ""
        raise InputError(f"{field}: {value!r} is not allowed; it must be a power of two{zero}")
    return number


def _roundup(settings: AllocatorSettings, field: str, value: str) -> AllocatorSettings:
    """``4`` for every size, or ``[256:1,512:2,>:4]`` with boundaries in MiB (``parseRoundUpPower2Divisions``)."""
    if not value.startswith("["):
        return replace(settings, roundup_power2_divisions=(_power_of_two(field, value),) * NUM_INTERVALS)
    if not value.endswith("]"):
        raise InputError(f"{field}: {value!r} is not allowed; nothing may follow the closing bracket")
    divisions, first, last_index = list(settings.roundup_power2_divisions), True, 0
    for entry in value[1:-1].rstrip(",").split(","):
        boundary, colon, text = entry.partition(":")
        if not colon:
            if value in ("[]", "[,]"):
                break
            raise InputError(f"{field}: {entry!r} is not allowed; write boundary:divisions, as in [256:1,512:2,>:4]")
        number = _power_of_two(f"{field}: {boundary}", text, or_zero=True)
        if boundary == ">":  # everything above the boundary before it
            divisions[last_index + 1 :] = [number] * (NUM_INTERVALS - last_index - 1)
            continue
        index = min(_power_of_two(field, boundary).bit_length() - 1, NUM_INTERVALS - 1)
        if first:  # the first boundary also stands for everything below it
            divisions[:index] = [number] * index
            first = False
        divisions[index] = number
        last_index = index
    return replace(settings, roundup_power2_divisions=tuple(divisions))


_READERS: dict[str, Callable[[AllocatorSettings, str, str], AllocatorSettings]] = {
    "large_segment_size_mb": _large_segment,
    "max_split_size_mb": _max_split,
    "max_non_split_rounding_mb": _max_non_split_rounding,
    "garbage_collection_threshold": _garbage_collection,
    "roundup_power2_divisions": _roundup,
    "expandable_segments": _expandable,
    "per_process_memory_fraction": _memory_fraction,
    "pinned_max_round_threshold_mb": _pinned_round,
    "pinned_max_cached_size_mb": _pinned_cached,
}
