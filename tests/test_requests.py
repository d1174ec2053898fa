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
from tests.dry_runs import Outcome, dry_runs
from tests.gpu.cases import SETS, Case
from tests.gpu.hf_cases import HF
from tests.gpu.history import specification

RECORDED: dict[str, Any] = json.loads((Path(__file__).parent / "data" / "requests.json").read_text(encoding="utf-8"))
CASES: dict[str, Case] = {case.name: case for cases in (*SETS.values(), HF) for case in cases}
SMALLEST = MIB

#: What a dry run came to, and the file of its events.
Run = tuple[Outcome, Path]


@pytest.fixture(scope="module")
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """The dry runs of the cases whose tests were asked for, from one process, and the files of their events."""
    folder = tmp_path_factory.mktemp("requests")
    names = [item.callspec.params["name"] for item in request.session.items if item.fspath == request.node.fspath]
    specs = {
        name: replace(
            specification(CASES[name], RECORDED[name]["steps"]),
            device="fake",
            rank=0,
            target=asdict(accelerator("h200")),
            events=str(folder / f"{name}.jsonl"),
            skipped_steps=RECORDED[name]["skipped_steps"],
        )
        for name in names
    }
    return {name: (record, folder / f"{name}.jsonl") for name, record in dry_runs(specs, jobs=1)}


@pytest.mark.engine
@pytest.mark.parametrize("name", RECORDED)
def test_every_request_is_the_cards(name: str, runs: dict[str, Run]) -> None:
    record, events = runs[name]
    assert not isinstance(record, str), record
    asked = [
        event["requested_bytes"]
        for event in read_events(events)
        if event["action"] == "alloc" and event["place"] == "device"
    ]
    assert [size for size in asked if size >= SMALLEST] == RECORDED[name]["requests"]
