"""dsplan.measurement: the record of a run, written and read back."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dsplan.errors import InputError
from dsplan.measurement import measurement_from_document, read_measurement
from dsplan.records import mistakes
from dsplan.units import MIB
from tests.measurements import FIRST, STEADY, dry_record, measurement, rank_record, step


def test_a_record_is_valid_and_reads_back_the_same(tmp_path: Path) -> None:
    written = measurement(rank_record(0), rank_record(1))
    document = json.loads(json.dumps(written.to_document()))
    assert mistakes("measurement", document) == []
    (tmp_path / "record.json").write_text(json.dumps(document))
    assert read_measurement(tmp_path / "record.json") == written


def test_the_record_of_a_dry_run_is_valid_and_reads_back_the_same(tmp_path: Path) -> None:
    written = measurement(dry_record(3, 512))
    document = json.loads(json.dumps(written.to_document()))
    assert mistakes("measurement", document) == []
    assert document["ranks"][0]["dry_run"] == dry_record()["dry_run"]
    (tmp_path / "record.json").write_text(json.dumps(document))
    assert read_measurement(tmp_path / "record.json") == written
    assert written.configuration.world_size == 512
    assert [step.loss for step in written.ranks[0].steps] == [None] * 4


def test_a_real_record_has_no_trace_of_a_dry_run() -> None:
    assert "dry_run" not in measurement().to_document()["ranks"][0]
    assert measurement().dry_run is None


def test_one_rank_of_a_record() -> None:
    found = measurement(rank_record(0), rank_record(1))
    assert [rank.rank for rank in found.only_rank(1).ranks] == [1]
    with pytest.raises(InputError, match="rank 2 is not in the record, which has 0, 1"):
        found.only_rank(2)


def test_a_dry_run_without_a_key_is_named() -> None:
    record = dry_record()
    del record["dry_run"]["peaks"][2]["terms"][0]["cause"]
    with pytest.raises(InputError, match=r"ranks\[0\]\.dry_run\.peaks\[2\]\.terms\[0\]\.cause: is missing"):
        measurement(record)


def test_peaks_are_those_of_the_worst_rank_over_the_steps() -> None:
    high = rank_record(1, [step(0, FIRST), step(1, ((24, 25), (16, 40), (16, 26)))])
    high["init"]["peak_bytes"] = 900 * MIB  # the initialisation is apart
    found = measurement(rank_record(0), high)
    assert found.worst_rank.rank == 1
    assert found.peak_allocated_bytes == 40 * MIB
    assert found.peak_reserved_bytes is None
    assert found.peak_device_bytes is None


def test_a_device_with_an_allocator_and_a_driver_has_their_peaks() -> None:
    found = measurement(rank_record(cuda=True))
    assert found.peak_reserved_bytes == 2 * 29 * MIB
    assert found.peak_device_bytes == 3 * 24 * MIB


def test_a_loss_that_is_not_finite_becomes_null() -> None:
    found = measurement(rank_record(0, [step(0, FIRST, loss=float("nan")), step(1, STEADY, loss=float("inf"))]))
    assert [step.loss for step in found.ranks[0].steps] == [None, None]
    json.dumps(found.to_document(), allow_nan=False)


def test_a_rank_record_without_a_key_is_named() -> None:
    record = rank_record()
    del record["steps"][2]["phases"]["backward"]["peak_bytes"]
    with pytest.raises(InputError, match=r"ranks\[0\]\.steps\[2\]\.phases\.backward\.peak_bytes: is missing"):
        measurement(record)


def _drop_versions(document: dict[str, Any]) -> None:
    del document["versions"]


def _text_for_bytes(document: dict[str, Any]) -> None:
    document["ranks"][0]["init"]["peak_bytes"] = "many"


def _unknown(document: dict[str, Any]) -> None:
    document["configuration"]["workload"]["batch"] = 4


def _version(document: dict[str, Any]) -> None:
    document["schema_version"] = 2


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_drop_versions, r"versions: is missing"),
        (_text_for_bytes, r"ranks\[0\]\.init\.peak_bytes: 'many' is not of type 'integer'"),
        (_unknown, r"configuration\.workload\.batch: unknown key"),
        (_version, r"schema_version: 1 was expected"),
    ],
)
def test_a_corrupt_record_names_file_and_key(
    tmp_path: Path, spoil: Callable[[dict[str, Any]], None], message: str
) -> None:
    document = measurement().to_document()
    spoil(document)
    path = tmp_path / "record.json"
    path.write_text(json.dumps(document))
    with pytest.raises(InputError, match=rf"record\.json: {message}"):
        read_measurement(path)
    with pytest.raises(InputError, match=f"there: {message}"):
        measurement_from_document(document, "there")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"schema_version": 1,', r"line 1, column \d+: not valid JSON"),
        (b"\xff\xfe", r"is not UTF-8 text \(byte 0\)"),
        (b"[]", r"the record: \[\] is not of type 'object'"),
    ],
)
def test_a_file_that_is_no_record(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "record.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_measurement(path)


def test_a_missing_file_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.json: cannot be read: No such file"):
        read_measurement(tmp_path / "none.json")


def test_reading_a_record_needs_no_torch() -> None:
    code = "import sys, dsplan.verification; print({'torch', 'deepspeed', 'psutil', 'runner'} & set(sys.modules))"
    root = Path(__file__).parents[1]
    result = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert result.stdout == "set()\n"
