"""How errors are counted, split and judged, on values made by hand; the tables of the real records."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

import pytest

from dsplan.comparison import Difference
from dsplan.units import MIB
from tests.accuracy import __main__ as command
from tests.accuracy import compared, readme_with
from tests.accuracy.errors import Errors
from tests.accuracy.estimators import DEEPSPEED, FORMULAS, PLAIN
from tests.accuracy.numbers import document
from tests.accuracy.splits import groups, halves
from tests.accuracy.tables import beyond, by_phase, cells, head_to_head, percent, phases, targets
from tests.accuracy.targets import Row, Target
from tests.dry_comparison import Value


def value(error_mib: float, *, of: int = 1000, record: str = "a", what: str = "") -> Value:
    """A record that measured ``of`` MiB, and a prediction that is off by ``error_mib``."""
    predicted = round((of + error_mib) * MIB)
    return Value(record, what, Difference(predicted_bytes=predicted, measured_bytes=of * MIB))


def errors(*mib: float) -> Errors:
    found = Errors.of(value(each) for each in mib)
    assert found is not None
    return found


def test_errors_are_signed_and_the_median_is_taken_twice() -> None:
    found = errors(-40, 10, 20)
    assert found.mean_percent == pytest.approx(-1 / 3)
    assert (found.median_percent, found.median_absolute_percent) == (1, 2)
    assert (found.worst.percent, found.lowest.percent) == (-4, -4)
    assert found.share_under == pytest.approx(1 / 3)
    assert Errors.of([]) is None


def test_what_is_noise_is_no_under_estimate() -> None:
    assert errors(-0.09, -0.2).share_under == 0.5  # 0.009 % and 0.02 %


TARGET = Target(median_percent=0.5, worst_percent=2, under_percent=1, worst_bytes=16 * MIB, under_bytes=8 * MIB)


@pytest.mark.parametrize(
    ("error", "of", "far", "low"),
    [
        (20, 1000, False, False),
        (21, 1000, True, False),
        (16, 100, False, False),  # 16 %, but no more than 16 MiB
        (-10, 1000, False, False),
        (-11, 1000, False, True),
        (-8, 100, False, False),
        (-9, 100, False, True),
        (-21, 1000, True, True),
    ],
)
def test_a_target_has_a_limit_either_way_and_one_below(error: float, of: int, far: bool, low: bool) -> None:
    found = value(error, of=of)
    assert (TARGET.is_too_far(found), TARGET.is_too_low(found)) == (far, low)
    assert TARGET.is_beyond(found) == (far or low)


def test_targets_say_what_is_met_and_list_what_is_not() -> None:
    row = Row("H200", TARGET, errors(0, 0, -15))
    assert row.verdicts == (True, True, False)
    assert targets([row])[-1] == (
        "| H200 | 3 | 0.00 % (at most 0.5 %: met) | -1.50 % (at most 2 % or 16 MiB: met) "
        "| -1.50 % (at most 1 % or 8 MiB: **not met**) |"
    )
    assert beyond([row], {}) == ["- **H200**:", "  - a: -1.50 %, -15 MiB"]
    assert beyond([Row("H200", TARGET, errors(1))], {}) == ["- **H200**: none"]


def test_a_half_without_records_is_said_to_have_none() -> None:
    row = Row("H200, unseen half", TARGET, None)
    assert (row.verdicts, row.beyond) == (None, [])
    assert targets([row])[-1] == "| H200, unseen half | none yet | | | |"
    assert cells(None).startswith("none yet")
    assert beyond([row], {}) == []


def test_nothing_has_no_sign() -> None:
    assert (percent(-0.001), percent(0.005, 1), percent(-1.234), percent(2)) == (
        "0.00 %",
        "0.0 %",
        "-1.23 %",
        "+2.00 %",
    )


def test_every_split_has_every_record_once() -> None:
    records = compared()
    found = groups(records)
    assert found[0].records == records
    for title in ("half", "family", "stage", "offload", "precision", "checkpointing", "ranks"):
        parts = [record.name for group in found if group.title == title for record in group.records]
        assert sorted(parts) == [record.name for record in records], title
    names = {group.name for group in found}
    assert {"stage: 0", "offload: none", "offload: optimizer to cpu", "precision: fp16", "ranks: 4"} <= names
    assert groups([]) == []


def test_the_halves_are_kept_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the third set had not been seen: nothing of it is in the seen half's table."""
    monkeypatch.setattr("tests.halves.SEEN_SETS", ("first", "second"))
    parts = {half: {record.name for record in found} for half, found in halves(compared()).items()}
    assert "gpt2-z1-round-robin-n2" in parts["unseen"]
    assert parts["seen"] | parts["unseen"] == {record.name for record in compared()}
    assert parts["seen"].isdisjoint(parts["unseen"])
    lines = "\n".join(by_phase(compared()))
    assert lines.index("| seen half: step and phase") < lines.index("| unseen half: step and phase")


@dataclass
class Phased:
    """As much of a record as the table of phases looks at."""

    phase_peaks: list[tuple[str, str, Value]]


def test_phases_are_in_order_of_time() -> None:
    """Stage 3 may have a second step of its own, whichever record comes first."""
    steps = {"short": ("init", "first step", "steady state"), "long": ("init", "first step", "step 2", "steady state")}
    records = [Phased([(step, "forward", value(0, record=name)) for step in each]) for name, each in steps.items()]
    found = phases(records)  # type: ignore[arg-type]
    assert [(name, len(values)) for name, values in found.items()] == [
        ("init, forward", 2),
        ("first step, forward", 2),
        ("step 2, forward", 1),
        ("steady state, forward", 2),
        ("all phases", 7),
    ]


def test_competitors_are_held_against_the_same_bytes() -> None:
    """gpt2 has Ψ = 163,037,184; stage 0 in bf16, Adam: 20Ψ by DeepSpeed's estimator and 16Ψ by the ZeRO paper."""
    found = next(each for each in compared() if each.name == "gpt2-z0-bf16-n1")
    measured = found.comparison.peak_allocated.measured_bytes
    for estimator, times in ((DEEPSPEED, 20), (PLAIN, 16)):
        peak = estimator.peak(found).difference
        assert (peak.predicted_bytes, peak.measured_bytes) == (times * 163_037_184, measured)
        states = estimator.states(found)
        assert states is not None
        assert states.difference.measured_bytes < measured
    assert FORMULAS.peak(found).difference == found.comparison.peak_allocated
    # 1.5 x 4 bytes for every rank, of a node's host memory.
    host = DEEPSPEED.host(found)
    assert host is not None
    assert host.difference.predicted_bytes == 6 * 163_037_184
    assert PLAIN.host(found) is None
    assert DEEPSPEED.host(replace(found, host=None)) is None


def test_the_competitors_under_estimate() -> None:
    """What the table is for: neither would have said that most of these runs need what they took."""
    lines = head_to_head(compared())
    assert any(line.startswith("| DeepSpeed's estimator | ") for line in lines)
    ours, theirs = (Errors.of(map(each.peak, compared())) for each in (FORMULAS, DEEPSPEED))
    assert ours is not None
    assert theirs is not None
    assert ours.median_absolute_percent < 1 < theirs.median_absolute_percent


def test_the_numbers_are_those_of_the_tables(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["accuracy", "--json"])
    command.main()
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads(json.dumps(document()))
    assert sorted(found["records"]) == [record.name for record in compared()]
    assert found["estimators"]["dsplan estimate"]["all records"]["number"] == len(compared())
    assert found["targets"][0]["on"] == "H200, peak allocated, unseen half"


def test_a_summary_is_put_between_its_markers() -> None:
    text = "a\n<!-- accuracy -->\nold\n<!-- /accuracy -->\nb\n"
    assert readme_with("new", text) == "a\n<!-- accuracy -->\nnew\n<!-- /accuracy -->\nb\n"
