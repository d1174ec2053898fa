"""dsplan.report.verification: the tables, at 80 columns and without colour."""

from __future__ import annotations

from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from dsplan.comparison import compare
from dsplan.prediction import prediction_from
from dsplan.report.dry_run import SHOWN_LINES
from dsplan.report.verification import print_verification
from dsplan.units import MIB
from tests.measurements import FIRST, STEADY, dry_record, measurement, peak_sizes, prediction, rank_record, step


def printed(*records: dict[str, Any], pinned: int = 0) -> str:
    found = measurement(*records)
    file = StringIO()
    console = Console(file=file, width=80, highlight=False, emoji=False, markup=False)
    print_verification(console, found, compare(found, prediction(pinned=pinned), tolerance_percent=5))
    return file.getvalue()


def rows(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


def test_it_fits_80_columns_and_ends_with_one_line_of_verdict() -> None:
    text = printed()
    assert "\x1b" not in text
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80
    assert text.splitlines()[-1] == "Confirmed: peak 29.0 MiB predicted, 29.0 MiB measured: 0.0 % (tolerance 5 %)."


def test_steps_have_levels_before_and_after_peaks_and_their_maximum() -> None:
    found = rows(printed())
    assert ["init", "init", "0.0", "10.0", "15.0", "15.0"] in found
    assert ["1", "forward", "10.0", "20.0", "21.0", "25.0"] in found
    assert ["backward", "10.0", "12.0", "25.0"] in found
    # The steps that measured the same share their rows.
    assert ["2-4", "forward", "10.0", "24.0", "25.0", "29.0"] in found


def test_phases_are_compared_with_a_signed_error() -> None:
    steps = [step(0, FIRST), step(1, ((24, 25), (20, 58), (16, 26)))]
    text = printed(rank_record(0, steps))
    assert ["backward", "16.0", "20.0", "-20.0", "%", "29.0", "58.0", "-50.0", "%"] in rows(text)
    assert ["all", "steps", "29.0", "58.0", "-50.0", "%"] in rows(text)
    assert text.splitlines()[-1].startswith("Refuted: peak 29.0 MiB predicted, 58.0 MiB measured: -50.0 %")


def test_the_rank_that_took_most_is_shown() -> None:
    high = rank_record(1, [step(0, FIRST), step(1, ((24, 25), (16, 30), (16, 26)))])
    assert "Measured on rank 1 of 2, which took most" in printed(rank_record(0), high)


def test_skipped_steps_are_shown_and_said_to_be_left_out() -> None:
    steps = [step(0, STEADY, skipped=True), step(1, FIRST), step(2, STEADY)]
    text = printed(rank_record(0, steps))
    assert "1 skipped" in text
    assert "Left out: 1 skipped step " in text


def test_host_memory_and_the_driver_s_figures_on_a_gpu() -> None:
    text = printed(rank_record(cuda=True), pinned=48)
    assert ["pinned", "48.0", "64.0", "-25.0", "%"] in rows(text)
    assert "58.0 MiB reserved, 72.0 MiB shown by the driver" in text


def test_host_memory_that_is_not_known() -> None:
    record = rank_record()
    record["host"] |= {"peak_rss_bytes": None, "pinned_bytes": None}
    assert ["pinned", "unknown"] in rows(printed(record))


# The dry run.


def printed_dry(record: dict[str, Any], *, explain: bool = False, against: dict[str, Any] | None = None) -> str:
    found, file = measurement(record), StringIO()
    if against is None:
        comparison = compare(found, prediction(), tolerance_percent=5)
    else:
        comparison = compare(measurement(against), prediction_from(found), tolerance_percent=5, against="there.json")
    console = Console(file=file, width=80, highlight=False, emoji=False, markup=False)
    print_verification(console, found, comparison, explain=explain)
    return file.getvalue()


def test_a_dry_run_says_so_and_of_what() -> None:
    text = printed_dry(dry_record(3))
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80
    assert "A dry run, no device was used: rank 3 of 4, standing for NVIDIA H200 141GB." in text
    assert "12,345 allocation events in 3.2 s; 13 questions about data answered by rule." in text
    assert "Found on rank 3 of 4, MiB allocated:" in text
    assert "Formula against the dry run, MiB" in text
    assert "58.0 MiB reserved, 72.0 MiB as the driver would show it" in text
    assert "over a process of 1.66 GiB" in text
    assert " ".join(text.split()).endswith(
        "Confirmed: formula against the dry run, peak 29.0 MiB against 29.0 MiB: 0.00 % (tolerance 5 %)."
    )
    assert "easured" not in text
    assert "by cause" not in text


def test_a_dry_run_is_off_by_hundredths() -> None:
    record = dry_record()
    record["steps"][3]["phases"]["backward"]["peak_bytes"] += MIB // 50
    assert ["all", "steps", "29.0", "29.0", "-0.07", "%"] in rows(printed_dry(record))


def test_settings_and_retries_of_the_allocator_are_said() -> None:
    record = dry_record()
    record["dry_run"]["allocator"] |= {"settings": "expandable_segments:True", "num_alloc_retries": 2}
    text = printed_dry(record)
    assert "Allocator settings: expandable_segments:True." in text
    assert "gave back its cache and tried again 2 times." in text


def test_a_dry_run_for_the_cpu_has_one_memory() -> None:
    record = dry_record()
    record["dry_run"]["target"] = "cpu"
    text = printed_dry(record)
    assert "On the CPU, device and host are one memory" in text
    assert "Device at most" not in text


def test_a_dry_run_against_a_record_compares_reserved_and_device_memory() -> None:
    text = printed_dry(dry_record(1, 2), against=rank_record(1, cuda=True))
    assert "Held against there.json." in text
    assert "Dry run against the record, MiB" in text
    assert ["reserved", "58.0", "58.0", "0.00", "%"] in rows(text)
    assert ["shown", "by", "the", "driver", "72.0", "72.0", "0.00", "%"] in rows(text)
    assert ["all,", "over", "the", "start", "90.0", "100.0", "-10.00", "%"] in rows(text)
    assert "Confirmed: dry run against the record, peak" in text


def test_a_record_without_a_driver_has_no_such_table() -> None:
    assert "Device at most, MiB (not judged)" not in printed_dry(dry_record(0, 2), against=rank_record(0))


def test_the_peak_is_explained_by_cause_then_line() -> None:
    text = printed_dry(dry_record(), explain=True)
    found = rows(text[text.index("The peak, in backward of step 2") :])[1:]
    assert [row[-2] for row in found[1:8]] == [
        "activations",
        "mingpt/model.py:42",
        "gradients",
        "deepspeed/runtime/zero/stage3.py:200",
        "mingpt/model.py:99",
        "parameters",
        "mingpt/model.py:10",
    ]
    assert found[3] == ["10.0", "MiB", "34.5", "%", "gradients", "5"]
    assert found[8] == ["29.0", "MiB", "100.0", "%", "=", "allocated,", "30,408,704", "bytes", "37"]


def test_beyond_the_largest_lines_the_rest_is_one_row() -> None:
    record = dry_record()
    lines = SHOWN_LINES + 5
    terms = [{"cause": "x", "where": f"a.py:{n}", "bytes": MIB * (n + 1), "count": 2} for n in range(lines)]
    total = sum(term["bytes"] for term in terms)
    record["dry_run"]["peaks"] = [{"step": "0", "phase": "step", "terms": terms, **peak_sizes(total + MIB)}]
    text = printed_dry(record, explain=True)
    assert text.count("a.py:") == SHOWN_LINES
    assert "the rest: 5 smaller lines" in text
    assert "15.0 MiB" in next(line for line in text.splitlines() if "the rest: " in line)
    missing = next(line for line in text.splitlines() if "please report this" in line)
    assert missing.split()[:2] == ["1.0", "MiB"]


def test_a_cause_of_small_lines_alone_is_in_the_rest() -> None:
    record = dry_record()
    terms = [
        {"cause": f"cause {n}", "where": "a.py:1", "bytes": MIB * (n + 1), "count": 1} for n in range(SHOWN_LINES + 1)
    ]
    total = sum(term["bytes"] for term in terms)
    record["dry_run"]["peaks"] = [{"step": "0", "phase": "step", "terms": terms, **peak_sizes(total)}]
    text = printed_dry(record, explain=True)
    assert "cause 0" not in text
    assert "the rest: 1 smaller line" in text
    assert "please report" not in text


@pytest.mark.parametrize("peaks", [[], [{"step": "init", "phase": "init", "terms": [], **peak_sizes(0)}]])
def test_a_peak_that_is_nothing(peaks: list[dict[str, Any]]) -> None:
    record = dry_record()
    record["dry_run"]["peaks"] = peaks
    assert ("The peak, in the initialisation" in printed_dry(record, explain=True)) is bool(peaks)


def test_a_real_run_cannot_be_explained() -> None:
    found, file = measurement(), StringIO()
    console = Console(file=file, width=80)
    print_verification(console, found, compare(found, prediction(), tolerance_percent=5), explain=True)
    assert "by cause" not in file.getvalue()
