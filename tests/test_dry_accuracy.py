"""The dry runs of the H200 records: the committed numbers keep their bounds, and the report says what they show."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from dsplan.errors import EXIT_OK, EXIT_RUN_FAILED, RunError
from dsplan.measurement import Measurement, read_measurement
from dsplan.units import MIB
from tests import dry_accuracy
from tests.accuracy import RECORDS, ROOT, readme_with, summary_of_dry_runs
from tests.dry_comparison import ALLOCATED_PHASES, ALLOCATED_STEPS, Quantity, all_held, held, quantities
from tests.dry_records import Entry, as_measured, entry_of, failed_entry, merged, read_entries, write_entries
from tests.dry_report import section, summary
from tests.halves import SEEN, UNSEEN
from tests.measurements import FIRST, STEADY, dry_record, measurement, rank_record, step

ENTRIES = read_entries()
NAMES = [path.stem for path in sorted(RECORDS.glob("*.json"))]
#: Of allocated memory, in percent of the measured: in the worst phase, and at the peak over the steps.
WORST_PHASE_PERCENT, WORST_PEAK_PERCENT = 0.4, 0.4


@cache
def records() -> dict[str, Measurement]:
    return {name: read_measurement(RECORDS / f"{name}.json") for name in NAMES}


@cache
def rows() -> dict[str, Quantity]:
    return {row.title: row for row in quantities(all_held(ENTRIES, records()))}


# The committed numbers.


def test_every_record_was_dry_run() -> None:
    assert sorted(ENTRIES) == NAMES
    assert [name for name, entry in ENTRIES.items() if "error" in entry] == []


@pytest.mark.parametrize("title", [ALLOCATED_PHASES, ALLOCATED_STEPS])
def test_the_median_of_allocated_memory_is_what_the_issue_asks_for(title: str) -> None:
    row = rows()[title]
    assert row.target is not None
    assert row.median_percent <= row.target.median_percent


@pytest.mark.parametrize("name", NAMES)
def test_allocated_memory_stays_where_it_is(name: str) -> None:
    """The bounds are what the numbers show today; the issue's is 0.3 % for both."""
    record = records()[name]
    found = held(name, ENTRIES[name], record)
    peak = found.allocated.peak_allocated.error_percent
    assert peak is not None
    assert abs(peak) <= WORST_PEAK_PERCENT
    assert abs(found.worst_phase.percent) <= WORST_PHASE_PERCENT, found.worst_phase.what


@pytest.mark.parametrize("name", NAMES)
def test_the_real_optimizer_was_dry_run(name: str) -> None:
    assert ENTRIES[name]["optimizer"] == records()[name].optimizer


@pytest.mark.parametrize("name", NAMES)
def test_the_process_stays_below_a_gigabyte(name: str) -> None:
    assert 0 < ENTRIES[name]["process_bytes"] < 10**9


def test_the_document_says_what_the_numbers_show() -> None:
    text = (ROOT / "docs" / "dry-run.md").read_text(encoding="utf-8")
    assert text == readme_with(summary_of_dry_runs(), text), "run: python -m tests.accuracy"


# What is kept of a dry run.


def dry_entry(**changes: Any) -> dict[str, Any]:
    """The entry of a dry run whose every number is that of ``real_record``."""
    return entry_of(measurement({**dry_record(), **changes}), seconds=12.34, cpu_seconds=9.87, process_bytes=300 * MIB)


def real_record(**changes: Any) -> Measurement:
    return measurement({**rank_record(cuda=True), **changes})


def test_an_entry_reads_back_as_what_the_dry_run_found() -> None:
    dry = measurement(dry_record())
    back = as_measured(json.loads(json.dumps(dry_entry())), real_record())
    assert back.worst_rank.init == dry.worst_rank.init
    assert [one.phases for one in back.worst_rank.steps] == [one.phases for one in dry.worst_rank.steps]
    assert back.worst_rank.host == dry.worst_rank.host
    assert back.configuration == real_record().configuration


def test_the_entry_of_a_real_run_is_refused() -> None:
    with pytest.raises(ValueError, match="not the record of a dry run"):
        entry_of(real_record(), seconds=1, cpu_seconds=1, process_bytes=1)


def test_the_file_is_json_with_a_line_for_each_phase(tmp_path: Path) -> None:
    entries: dict[str, Entry] = {"a": dry_entry(), "b": failed_entry("2026-01-01", 'RunError: "it" died\nof memory')}
    write_entries(entries, tmp_path / "dry.json")
    assert read_entries(tmp_path / "dry.json") == json.loads(json.dumps(entries))
    lines = (tmp_path / "dry.json").read_text().splitlines()
    assert sum(line.startswith('    ["') for line in lines) == 1 + 4 * 3
    assert read_entries(tmp_path / "none.json") == {}


def test_a_later_run_replaces_its_records_and_keeps_the_others() -> None:
    before: dict[str, Entry] = {"a": {"error": "died"}, "b": {"seconds": 1}, "gone": {"seconds": 2}}
    both = merged(before, {"a": {"seconds": 3}, "c": {"seconds": 4}}, ["c", "b", "a", "new"])
    assert list(both.items()) == [("a", {"seconds": 3}), ("b", {"seconds": 1}), ("c", {"seconds": 4})]


# The command.


def test_the_command_merges_what_it_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """Without the engine: a stand-in gives the record's own numbers, or dies."""
    monkeypatch.setattr(dry_accuracy, "verify", _verified)
    monkeypatch.setattr(dry_accuracy, "_entries", lambda names, _: map(dry_accuracy.dry_run, names))
    path = tmp_path / "dry.json"
    write_entries({"1.7B-z2-bf16-n1": {"error": "stale"}, "gpt2-z2-fp32-n1": {"error": "kept"}}, path)
    assert dry_accuracy.main(["1.7B-z2-bf16-n1", "tests/data/measured/gpt2-z3-bf16-n1.json"], path) == EXIT_RUN_FAILED
    entries = read_entries(path)
    assert sorted(entries) == ["1.7B-z2-bf16-n1", "gpt2-z2-fp32-n1", "gpt2-z3-bf16-n1"]
    assert entries["gpt2-z2-fp32-n1"] == {"error": "kept"}
    assert entries["gpt2-z3-bf16-n1"]["error"] == "RunError: rank 0 died"
    found = held("a", entries["1.7B-z2-bf16-n1"], records()["1.7B-z2-bf16-n1"])
    assert {value.percent for value in found.phase_peaks} == {0}
    said = capsys.readouterr().err
    assert "[ 1/2]" in said
    assert "peak +0.00 %" in said
    assert "failed: RunError: rank 0 died" in said
    assert dry_accuracy.main(["1.7B-z2-bf16-n1"], path) == EXIT_OK


def test_an_unknown_record_is_refused(tmp_path: Path, capsys: Any) -> None:
    with pytest.raises(SystemExit):
        dry_accuracy.main(["gpt9"], tmp_path / "dry.json")
    assert "no such record" in capsys.readouterr().err


@pytest.mark.parametrize("name", NAMES)
def test_the_dry_run_is_told_what_the_record_says(name: str) -> None:
    record = dry_accuracy.worst_rank_of(records()[name])
    told = dry_accuracy.job_of(record, name).specification()
    assert (told["device"], told["target"]["name"], told["steps"]) == ("fake", "h200", 3)
    assert told["rank"] == records()[name].worst_rank.rank
    assert told["ds_config"] == record.configuration.ds_config
    assert told["gpus"] == record.configuration.world_size


def _verified(job: Any, *_: Any, **__: Any) -> tuple[Measurement, None]:
    if job.ds_config.get("zero_optimization", {}).get("stage") == 3:
        raise RunError("rank 0 died")
    real, dry = job.against.measurement, measurement(dry_record()).worst_rank.dry_run
    return replace(real, ranks=(replace(real.worst_rank, dry_run=dry),)), None


# The report.


@pytest.fixture
def halves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Records made by hand are of no set: ``new`` is unseen, the others are seen."""
    monkeypatch.setattr("tests.dry_report.half_of", lambda name: UNSEEN if name == "new" else SEEN)


def two_percent_more() -> dict[str, Any]:
    """Steps whose peak is 2 % over that of the record, in backward."""
    sizes = [FIRST, *[[STEADY[0], (16, 29.58), STEADY[2]]] * 2]
    steps = [step(index, size, cuda=True) for index, size in enumerate(sizes)]
    for one in steps:
        for phase in one["phases"].values():
            phase.update({key: round(value) for key, value in phase.items() if value is not None})
    return {"steps": steps}


def test_a_row_has_the_error_of_every_phase_or_of_the_peak() -> None:
    found = held("a", dry_entry(**two_percent_more()), real_record())
    rows = {row.title: row for row in quantities([found])}
    phases, peak = rows[ALLOCATED_PHASES], rows[ALLOCATED_STEPS]
    assert len(phases.values) == 7
    assert (phases.worst.record, phases.worst.what) == ("a", "steady state, backward")
    assert phases.worst.percent == pytest.approx(2, abs=1e-5)
    assert phases.median_percent == 0
    assert [value.what for value in phases.beyond] == ["steady state, backward"]
    assert peak.median_percent == pytest.approx(2, abs=1e-5)
    assert rows["reserved, no offload"].worst.percent == pytest.approx(2, abs=1e-5)
    assert "reserved, offload" not in rows
    assert "host RSS, offload" not in rows
    assert rows["host RSS, no offload"].worst.percent == pytest.approx(-2.5)  # 390 of 400 MiB
    assert (peak.share_under, rows["host RSS, no offload"].share_under) == (0, 1)


def test_a_skipped_step_is_left_out() -> None:
    skipping = [step(0, FIRST, skipped=True, cuda=True)]
    skipping += [step(index, STEADY if index > 1 else FIRST, cuda=True) for index in range(1, 4)]
    found = held("a", dry_entry(steps=dry_record(steps=skipping)["steps"]), real_record(steps=skipping))
    assert found.allocated.num_skipped_steps == 1
    assert found.worst_phase.percent == 0


@pytest.mark.usefixtures("halves")
def test_the_report_says_which_targets_are_met_and_what_is_beyond() -> None:
    text = section({"a": dry_entry(**two_percent_more())}, {"a": real_record()})
    assert "| allocated, peak of each phase | 7 | 0.000 % | 0.05 %: met | +2.00 % (a, steady state, backward) " in text
    assert "| 0.3 %: **not met** |" in text
    assert "- **reserved, no offload**, beyond 5 %: none" in text
    assert "  - a, steady state, backward: +2.00 %, +1 MiB\n" in text
    assert "Without a result" not in text


@pytest.mark.usefixtures("halves")
def test_the_report_lists_what_failed_and_what_is_missing() -> None:
    both = {"a": real_record(), "b": real_record(), "c": real_record()}
    text = section({"a": dry_entry(), "b": failed_entry("2026-01-01", "RunError: died\nof memory")}, both)
    assert "1 of 3 records" in text
    assert text.endswith("Without a result:\n\n- b: RunError: died\n- c: not dry-run yet\n")
    assert "No record has been dry-run" in section({}, both)


@pytest.mark.usefixtures("halves")
def test_the_halves_are_kept_apart() -> None:
    entries = {"a": dry_entry(**two_percent_more()), "new": dry_entry()}
    records = {name: real_record() for name in entries}
    text = section(entries, records)
    unseen, seen = text.index("### The unseen half"), text.index("### The seen half")
    assert unseen < text.index("| allocated, peak over the steps | 1 | 0.000 % |") < seen
    assert text.index("| allocated, peak over the steps | 1 | 2.000 % |") > seen
    first, second = (line for line in summary(entries, records).splitlines() if line.startswith("The dry run against"))
    assert (" not looked at " in first, " not looked at " in second) == (True, False)


@pytest.mark.usefixtures("halves")
def test_the_summary_has_the_rows_with_a_target() -> None:
    text = summary({"a": dry_entry()}, {"a": real_record()})
    assert text.startswith("The dry run against the 1 of these records that were looked at")
    assert "| allocated, peak over the steps | 1 | 0.00 % | 0.00 % |" in text
    assert "no offload | 38" not in text
    assert "each phase, no offload" not in text
