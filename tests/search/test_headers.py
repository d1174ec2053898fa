"""Files of measurements say by which command, when, on what and with what they were made."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.gpu.header import KEYS, header, read_rows, write_rows

DATA = Path(__file__).parents[1] / "data"
FILES = (*sorted(DATA.glob("regret*.json")), *(DATA / f"{name}.json" for name in ("allocator_traces", "caps")))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_committed_file_says_where_it_comes_from(path: Path) -> None:
    document = json.loads(path.read_text(encoding="utf-8"))
    assert set(KEYS) < set(document)
    assert document["made_by"].startswith("python -m tests.gpu.")
    assert document["device"] == "NVIDIA H200"
    assert document["created"] >= "2026-11-21"
    assert document["versions"]["torch"].startswith("2.11")


def test_rows_are_written_after_their_header_and_read_back(tmp_path: Path) -> None:
    rows = [{"a": 1, "b": "x"}, {"a": None}]
    head = header("python -m tests.gpu.example", "A card", {"torch": "2.11"})
    for written in (rows, []):
        write_rows(tmp_path / "rows.json", head, written)
        assert read_rows(tmp_path / "rows.json") == written
        document = json.loads((tmp_path / "rows.json").read_text(encoding="utf-8"))
        assert {key: document[key] for key in KEYS} == head
    write_rows(tmp_path / "rows.json", head, rows, key="runs")
    assert read_rows(tmp_path / "rows.json", key="runs") == rows
    assert [path.name for path in tmp_path.iterdir()] == ["rows.json"]
