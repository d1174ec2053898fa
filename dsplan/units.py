"""Bytes and counts: parsing what people type and writing what they read.

Inside dsplan every size is an ``int`` of bytes and every count an ``int``. Vendor sizes such as
"80GB" are decimal, "80GiB" is binary; only this file and ``dsplan.report`` know either unit.
"""

from __future__ import annotations

import re

from dsplan.errors import InputError

KIB = 1024
MIB = 1024**2
GIB = 1024**3

_DECIMAL = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15}
_COUNT = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "G": 10**9, "T": 10**12}
_LARGEST_COUNT = 1e15
_SIZE = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([KMGTP]?)(i?)B?\s*$", re.IGNORECASE)
_NUMBER = re.compile(r"^\s*(\d+(?:\.\d+)?(?:[eE]\+?\d+)?)\s*([KMBGT]?)\s*$", re.IGNORECASE)


def parse_size(text: str, field: str = "size") -> int:
    """Bytes of ``"80GB"`` (decimal), ``"40GiB"`` (binary), ``"1TB"`` or a plain number of bytes."""
    match = _SIZE.match(text)
    if match is None:
        raise InputError(f"{field}: {text!r} is not a size; write 80GB, 40GiB, 1TB or a number of bytes")
    number, prefix, binary = match.groups()
    power = "KMGTP".find(prefix.upper()) + 1 if prefix else 0
    factor = 1024**power if binary else _DECIMAL[prefix.upper()]
    size = round(float(number) * factor)
    if size < 1:
        raise InputError(f"{field}: {text!r} is not allowed; it must be more than zero")
    return size


def parse_count(text: str, field: str = "count") -> int:
    """The count of ``"45B"``, ``"1.7b"``, ``"453M"``, ``"1e9"`` or a plain integer; at least 1."""
    match = _NUMBER.match(text)
    if match is None:
        raise InputError(f"{field}: {text!r} is not a count; write 45B, 1.7B, 453M or a whole number")
    number, suffix = match.groups()
    value = float(number) * _COUNT[suffix.upper()]
    if value > _LARGEST_COUNT:
        raise InputError(f"{field}: {text!r} is not allowed; it must be at most {_LARGEST_COUNT:.0e}")
    count = round(value)
    if count < 1:
        raise InputError(f"{field}: {text!r} is not allowed; it must be at least 1")
    return count


def format_bytes(size_bytes: float) -> str:
    """A size for people: ``"43.1 GiB"``, ``"512 B"``; the sign is kept."""
    magnitude = abs(size_bytes)
    for unit, factor in (("TiB", 1024 * GIB), ("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if magnitude >= factor:
            return f"{size_bytes / factor:,.1f} {unit}" if unit != "GiB" else f"{size_bytes / factor:,.2f} GiB"
    return f"{size_bytes:.0f} B"


def format_count(count: int) -> str:
    """A count for people: ``"45.1B"``, ``"453.9M"``, ``"65"``."""
    for suffix, factor in (("T", 10**12), ("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if count >= factor:
            return f"{count / factor:.1f}{suffix}"
    return str(count)


def ceil_div(numerator: int, denominator: int) -> int:
    """The smallest integer that is at least ``numerator / denominator``."""
    return -(-numerator // denominator)


def round_up(value: int, multiple: int) -> int:
    """The smallest multiple of ``multiple`` that is at least ``value``."""
    return ceil_div(value, multiple) * multiple


def next_power_of_two(value: int) -> int:
    """The smallest power of two that is at least ``value`` (1 for 0 and 1)."""
    return 1 if value <= 1 else 1 << (value - 1).bit_length()
