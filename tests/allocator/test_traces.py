"""The emulation against what torch did on a GPU (tests/data/allocator_traces.json, from tests/gpu/traces.py)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dsplan.units import MIB
from tests.allocator.replay import check_consistent, replay
from tests.gpu.header import read_rows
from tests.gpu.traces import CONFIGURATIONS, sequences

FILE = Path(__file__).parents[1] / "data" / "allocator_traces.json"
RECORDS = read_rows(FILE, key="sequences")


def name(sequence: dict[str, Any]) -> str:
    return f"{sequence['configuration'] or 'default'} {sequence['name']}"


def segments_of(seen_or_record: Any) -> list[Any]:
    """Segments in an order that does not depend on addresses: cudaMalloc's are not ours."""
    return sorted(seen_or_record, key=json.dumps)


@pytest.mark.parametrize("record", RECORDS, ids=name)
def test_every_number_is_torchs(record: dict[str, Any]) -> None:
    seen = replay(record)
    for place, (ours, theirs) in enumerate(zip(seen.levels, record["levels"], strict=True)):
        assert ours == theirs, f"after operation {place}: {record['operations'][place]}"
    assert seen.failed == record["failed"]
    assert {key: getattr(seen.allocator, key) for key in record["end"]} == record["end"]
    ours = [
        [
            state.stream,
            state.is_large,
            state.total_bytes,
            [[size, kind, asked] for _, size, kind, asked in state.blocks],
        ]
        for state in seen.allocator.snapshot()
    ]
    assert segments_of(ours) == segments_of(record["segments"])


@pytest.mark.parametrize("sequence", sequences(), ids=name)
def test_the_scripted_sequences_stay_consistent(sequence: dict[str, Any]) -> None:
    """Without a GPU the scripts still exercise every configuration."""
    allocator = replay(sequence, check_consistent).allocator
    assert (allocator.num_ooms > 0) <= (sequence["cap_bytes"] is not None)
    assert allocator.num_ooms <= allocator.num_alloc_retries
    if sequence["cap_bytes"] is not None:
        # torch compares the cap with get_allocation_size, but maps expandable segments by granules of 20 MiB.
        beyond = 20 * MIB if "expandable" in sequence["configuration"] else 0
        assert allocator.peak_reserved_bytes <= sequence["cap_bytes"] + beyond


def test_the_scripts_are_the_same_every_time_and_cover_the_hard_cases() -> None:
    assert sequences() == sequences()
    assert {sequence["configuration"] for sequence in sequences()} == set(CONFIGURATIONS)
    kinds = {operation[0] for sequence in sequences() for operation in sequence["operations"]}
    assert kinds == {"alloc", "free", "record_stream", "empty_cache", "busy", "wait"}
    capped = [replay(sequence) for sequence in sequences() if sequence["cap_bytes"]]
    assert any(seen.failed for seen in capped)
    assert any(seen.allocator.num_alloc_retries > len(seen.failed) for seen in capped)
