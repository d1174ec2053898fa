"""dsplan.events: what is made of the events of a dry run."""

from __future__ import annotations

import gzip
import json
import pickle
from pathlib import Path
from xml.etree import ElementTree

import pytest

from dsplan.errors import InputError
from dsplan.events.read import read_events
from dsplan.events.snapshot import snapshot
from dsplan.events.timeline import COLUMNS, HEIGHT, timeline_svg
from dsplan.events.write import require_kind, write_events

from .examples import EVENTS, MIB, written

SVG = "{http://www.w3.org/2000/svg}"


def test_a_line_that_is_not_finished_is_left_out(tmp_path: Path) -> None:
    assert list(read_events(written(tmp_path))) == EVENTS


def test_the_snapshot_has_the_device_s_events_and_what_lives_at_the_end() -> None:
    found = snapshot(EVENTS)
    (trace,) = found["device_traces"]
    assert [(entry["action"], entry["size"] // MIB) for entry in trace] == [
        ("alloc", 20),
        ("alloc", 10),
        ("free_requested", 20),
        ("free_completed", 20),
        ("oom", 99),
    ]
    assert trace[2]["addr"] == trace[0]["addr"] != trace[1]["addr"]
    assert [frame["name"] for frame in trace[0]["frames"]] == ["mm.default", "Block.forward", "transformer.h.0"]
    assert trace[0]["frames"][0]["filename"] == "mingpt/model.py"
    assert trace[0]["frames"][0]["line"] == 12
    (segment,) = found["segments"]
    assert (segment["stream"], segment["blocks"][0]["size"]) == (1, 10 * MIB)


def test_torch_s_own_viewer_reads_the_snapshot() -> None:
    viewer = pytest.importorskip("torch.cuda._memory_viz")
    text = viewer.trace(snapshot(EVENTS))
    assert "20.0MiB" in text
    assert "10.0MiB" in viewer.segsum(snapshot(EVENTS))
    assert "OutOfMemoryError # 99.0MiB" in text


def test_the_picture_names_the_phases_the_peak_and_the_end() -> None:
    picture = ElementTree.fromstring(timeline_svg(EVENTS, "a < b"))
    texts = ["".join(text.itertext()) for text in picture.iter(f"{SVG}text")]
    assert texts[0] == "a < b"
    assert "peak 30.0 MiB (event 1)" in texts
    assert "out of memory" in texts
    assert [title.text for title in picture.iter(f"{SVG}title")] == ["init", "forward 1", "backward 1"]
    (area,) = picture.iter(f"{SVG}polygon")
    heights = [float(point.split(",")[1]) for point in area.attrib["points"].split()]
    assert len(heights) == 2 + 4  # its feet, and the events that touch the device
    assert max(heights) <= HEIGHT


def test_of_many_events_the_highest_of_each_column_is_drawn() -> None:
    levels = [0] * 10 * COLUMNS
    levels[12345] = 7 * MIB
    events = [
        {"action": "alloc", "place": "device", "allocated_bytes": level, "reserved_bytes": level} for level in levels
    ]
    picture = timeline_svg(events, "many")
    (area,) = ElementTree.fromstring(picture).iter(f"{SVG}polygon")
    assert len(area.attrib["points"].split()) <= COLUMNS + 2
    assert "peak 7.0 MiB (event 12,345)" in picture


def test_without_an_event_there_is_an_empty_frame() -> None:
    ElementTree.fromstring(timeline_svg([], "nothing"))


def test_the_suffix_says_what_is_written(tmp_path: Path) -> None:
    source = written(tmp_path)
    for name in ("e.jsonl", "e.jsonl.gz", "e.pickle", "e.svg"):
        write_events(source, tmp_path / name, "a run", force=False)
    assert (tmp_path / "e.jsonl").read_bytes() == source.read_bytes()
    assert gzip.decompress((tmp_path / "e.jsonl.gz").read_bytes()) == source.read_bytes()
    assert pickle.loads((tmp_path / "e.pickle").read_bytes()) == snapshot(EVENTS)
    assert (tmp_path / "e.svg").read_text().startswith("<svg")
    assert json.loads((tmp_path / "e.jsonl").read_text().splitlines()[0]) == EVENTS[0]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("e.png", r"--events: .*e.png has none of the suffixes .jsonl, .jsonl.gz, .pickle, .svg"),
        ("none/e.svg", "does not exist"),
        ("there.svg", "exists already"),
    ],
)
def test_what_cannot_be_written_is_said_before_the_run(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "there.svg").write_text("mine")
    with pytest.raises(InputError, match=message):
        require_kind(tmp_path / name, force=False)
    require_kind(tmp_path / "there.svg", force=True)
    assert (tmp_path / "there.svg").read_text() == "mine"
