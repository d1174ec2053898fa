"""units: what people type becomes exact integers, and what they read is rounded once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsplan.errors import InputError
from dsplan.units import (
    GIB,
    ceil_div,
    format_bytes,
    format_count,
    next_power_of_two,
    parse_count,
    parse_size,
    round_up,
)


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("80GB", 80 * 10**9),
        ("80gb", 80 * 10**9),
        ("80 GB", 80 * 10**9),
        ("80G", 80 * 10**9),
        ("40GiB", 40 * 1024**3),
        ("1.5TiB", 3 * 1024**4 // 2),
        ("1TB", 10**12),
        ("512KiB", 512 * 1024),
        ("16MB", 16 * 10**6),
        ("1PB", 10**15),
        ("12345", 12345),
        ("1B", 1),
    ],
)
def test_sizes_are_decimal_unless_binary_is_written(text: str, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "80 GB GB", "80XB", "0", "0GB", "1e9", "0x10", "nan"])
def test_what_is_no_size_is_refused_with_the_field(text: str) -> None:
    with pytest.raises(InputError, match=r"^--memory: "):
        parse_size(text, "--memory")


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("45B", 45 * 10**9),
        ("1.7b", 1_700_000_000),
        ("453M", 453 * 10**6),
        ("1e9", 10**9),
        ("1.5e3", 1500),
        ("7G", 7 * 10**9),
        ("1T", 10**12),
        ("12K", 12_000),
        (" 65 ", 65),
    ],
)
def test_counts(text: str, count: int) -> None:
    assert parse_count(text) == count


@pytest.mark.parametrize("text", ["", "B", "-3B", "4 5B", "45BB", "0", "0.4", "1e-3", "inf"])
def test_what_is_no_count_is_refused_with_the_field(text: str) -> None:
    with pytest.raises(InputError, match=r"^--params: "):
        parse_count(text, "--params")


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 B"),
        (512, "512 B"),
        (1024, "1.0 KiB"),
        (3 * 1024**2 // 2, "1.5 MiB"),
        (GIB, "1.00 GiB"),
        (-GIB, "-1.00 GiB"),
        (2 * 1024 * GIB, "2.0 TiB"),
        (2048 * 1024 * GIB, "2,048.0 TiB"),
    ],
)
def test_sizes_for_people(size_bytes: int, text: str) -> None:
    assert format_bytes(size_bytes) == text


@pytest.mark.parametrize(
    ("count", "text"), [(65, "65"), (45_105_250_304, "45.1B"), (453_900_000, "453.9M"), (10**12, "1.0T")]
)
def test_counts_for_people(count: int, text: str) -> None:
    assert format_count(count) == text


@given(st.integers(0, 10**15), st.integers(1, 10**9))
def test_rounding_up(value: int, multiple: int) -> None:
    rounded = round_up(value, multiple)
    assert rounded % multiple == 0
    assert value <= rounded < value + multiple
    assert ceil_div(value, multiple) * multiple == rounded


@given(st.integers(1, 10**18))
def test_next_power_of_two_is_the_smallest_that_holds(value: int) -> None:
    power = next_power_of_two(value)
    assert power.bit_count() == 1
    assert power // 2 < value <= power


def test_next_power_of_two_of_nothing() -> None:
    assert next_power_of_two(0) == 1


@given(st.integers(1, 10**15))
def test_a_plain_number_of_bytes_is_taken_as_it_is(size_bytes: int) -> None:
    assert parse_size(str(size_bytes)) == size_bytes
