"""What the dry run asks its allocator for, request by request, against what an H200's allocator was asked for.

``tests/data/requests.json`` holds the requests of one rank, of 1 MiB or more, in order (made by
``python -m tests.gpu.history``). What is below that is left out: a barrier's byte, and what DeepSpeed compares across
ranks, both of which the pretend group answers without tensors, and the buffers of a sort.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from dsplan.catalogue import accelerator
from dsplan.events.read import read_events
from dsplan.units import MIB
from tests.dry_runs import dry_runs
from tests.gpu.cases import SETS, Case
from tests.gpu.hf_cases import HF
from tests.gpu.history import specification

RECORDED: dict[str, Any] = json.loads((Path(__file__).parent / "data" / "requests.json").read_text(encoding="utf-8"))
CASES: dict[str, Case] = {case.name: case for cases in (*SETS.values(), HF) for case in cases}
SMALLEST = MIB


@pytest.mark.engine
@pytest.mark.parametrize("name", RECORDED)
def test_every_request_is_the_cards(name: str, tmp_path: Path) -> None:
    recorded = RECORDED[name]
    events = tmp_path / "events.jsonl"
    spec = replace(
        specification(CASES[name], recorded["steps"]),
        device="fake",
        rank=0,
        target=asdict(accelerator("h200")),
        events=str(events),
        skipped_steps=recorded["skipped_steps"],
    )
    ((_, record),) = dry_runs({name: spec}, jobs=1)
    assert not isinstance(record, str), record
    asked = [
        event["requested_bytes"]
        for event in read_events(events)
        if event["action"] == "alloc" and event["place"] == "device"
    ]
    assert [size for size in asked if size >= SMALLEST] == recorded["requests"]
