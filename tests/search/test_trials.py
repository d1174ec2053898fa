"""``dsplan verify --top``: which configurations are timed, what is said of them, and all of it on the CPU."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from dsplan.catalogue import accelerator, preset
from dsplan.cli import main
from dsplan.errors import EXIT_BAD_INPUT, EXIT_OK, EXIT_OUT_OF_MEMORY, RunError
from dsplan.hardware import Cluster
from dsplan.records import mistakes
from dsplan.report.console import stdout_console
from dsplan.report.trials import print_trials, trials_document
from dsplan.search import trials as chooser
from dsplan.search.result import SearchResult
from dsplan.search.search import search
from dsplan.search.trials import BASELINE, RECOMMENDED, RUNNER_UP, Tried, reached, trials, tried
from dsplan.strategies import standard_plans
from dsplan.timing import trials as process
from dsplan.timing.trials import Outcome, run_trials
from dsplan.workload import Workload
from tests.timing import profiles


@pytest.fixture(scope="module")
def result() -> SearchResult:
    model = preset("gpt2")
    plans = [plan for plan in standard_plans(model, Workload()) if not plan.zero.offloads_optimizer]
    cluster = Cluster(accelerator=accelerator("h200"), gpus_per_node=2)
    return search(model, plans, cluster, profile=profiles.profile(), sizes=(1, 2, 4), what_if=False, vary=False)


def test_the_best_come_first_and_every_stage_is_there(result: SearchResult) -> None:
    chosen = trials(result, 2)
    assert [one.role for one in chosen[:2]] == [RECOMMENDED, RUNNER_UP]
    assert chosen[0].plan == result.ranked[0].plan
    assert {one.role for one in chosen[2:]} == {BASELINE}
    names = [one.plan.name for one in chosen]
    assert len(names) == len(set(names))
    assert {"zero0", "zero1", "zero2", "zero3"} <= set(names)
    assert all(one.peak_bytes > 2**30 for one in chosen)


def outcomes(result: SearchResult, *factors: float | None) -> list[Tried]:
    """Each trial takes so many times what was predicted; None ran out of memory."""
    found = []
    for one, factor in zip(trials(result, 2), factors, strict=False):
        if factor is None:
            outcome = Outcome(exit_code=EXIT_OUT_OF_MEMORY, message="rank 0 ran out of memory")
        else:
            outcome = Outcome(
                seconds=factor * one.time.seconds, peak_allocated_bytes=one.peak_bytes, device="x", versions={}
            )
        found.append(tried(one, outcome))
    return found


def test_the_regret_is_what_the_recommended_lacks_of_the_best(
    result: SearchResult, capsys: pytest.CaptureFixture[str]
) -> None:
    found = outcomes(result, 2.0, 1.0, None)
    share = found[0].trial.time.tokens_per_s / 2 / found[1].trial.time.tokens_per_s
    assert reached(found) == pytest.approx(share)
    assert found[0].time_error == pytest.approx(-0.5)
    assert found[0].memory_error == pytest.approx(0)
    document = trials_document(result, found)
    assert mistakes("trials", document) == []
    assert document["regret"] == pytest.approx(1 - share)
    assert document["trials"][2]["measured"] is None
    print_trials(stdout_console(), result, found)
    text = capsys.readouterr().out
    assert f"{100 * share:.1f} %" in text
    assert "rank 0 ran out of memory" in text


def test_a_recommendation_that_does_not_run_has_no_regret(
    result: SearchResult, capsys: pytest.CaptureFixture[str]
) -> None:
    found = outcomes(result, None, 1.0)
    assert reached(found) is None
    assert trials_document(result, found)["regret"] is None
    print_trials(stdout_console(), result, found)
    assert "did not run" in capsys.readouterr().out


_PRETENDED = """
import json, sys
count = len(json.load(open(sys.argv[1])))
print("a library prints")
print(json.dumps({"event": "stage", "trial": 0, "text": "taking steps"}))
row = {"seconds": 2.0, "peak_allocated_bytes": 5, "peak_reserved_bytes": None}
row |= {"device": {"name": "x"}, "versions": {}}
other = {**row, "seconds": 3.0, "peak_allocated_bytes": 4}
print(json.dumps({"event": "measured", "trial": 0, "records": [row, other]}))
if count > 1:
    print(json.dumps({"event": "failed", "trial": 1, "exit_code": 4, "message": "out of memory\\nlog"}))
if count > 2:
    sys.exit("it broke off")
"""


def test_the_slowest_rank_and_the_highest_peak_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_command", lambda: [sys.executable, "-c", _PRETENDED])
    said: list[str] = []
    first, second = run_trials([{}, {}], tmp_path, timeout_s=1, on_progress=lambda event: said.append(event["event"]))
    assert (first.seconds, first.peak_allocated_bytes, first.peak_reserved_bytes) == (3.0, 5, None)
    assert (second.seconds, second.exit_code, second.message) == (None, 4, "out of memory")
    assert said == ["stage", "measured", "failed"]
    with pytest.raises(RunError, match=r"broke off with exit code 1:\n  \| it broke off"):
        run_trials([{}, {}, {}], tmp_path, timeout_s=1, on_progress=lambda _: None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--top", "0", "--device", "cpu"], "--top: 0 is not allowed"),
        (["--top", "2", "--gpus", "0"], "--gpus: 0 is not allowed"),
        (["--calibrate", "--gpus", "0"], "--gpus: 0 is not allowed"),
        (["--top", "2", "--strategy", "zero1"], "--strategy and --top contradict each other"),
        (["--top", "2", "--name", "x"], "--name and --top contradict each other"),
        (["--top", "1", "--device", "cpu"], "no rates are known of cpu; give a profile"),
        (["--top", "1", "--device", "cpu", "--cap", "1GiB"], "--cap: torch limits the memory of CUDA devices only"),
        (["--top", "1", "--device", "cpu", "--profile", "nominl"], "did you mean nominal"),
        (["--profile", "x"], "--profile: goes with --calibrate or --top"),
        (["--calibrate", "--model", "gpt2"], "--model and --calibrate contradict each other"),
        (["--calibrate", "--device", "cpu", "--name", "a/b"], "--name: 'a/b' is not allowed"),
    ],
)
def test_what_contradicts_is_refused_before_anything_runs(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", *arguments]) == EXIT_BAD_INPUT
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.engine
def test_on_the_cpu_it_runs_from_end_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = profiles.document()
    made["device"]["kind"] = "cpu"
    (tmp_path / "made-up.json").write_text(json.dumps(made))
    monkeypatch.setenv("DSPLAN_PROFILES", str(tmp_path))
    monkeypatch.setattr(chooser, "_BASELINES", ("zero3",))
    arguments = ["--top", "1", "--device", "cpu", "--gpus", "1", "--seq-len", "32", "--micro-batch-size", "2"]
    arguments += ["--steps", "1", "--profile", "made-up", "--json"]
    assert main(["verify", *arguments]) == EXIT_OK
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert mistakes("trials", document) == []
    assert [row["role"] for row in document["trials"]] == [RECOMMENDED, BASELINE]
    for row in document["trials"]:
        assert row["failure"] is None
        predicted, measured = (row[name]["peak_allocated_bytes"] for name in ("predicted", "measured"))
        assert measured == pytest.approx(predicted, rel=0.05)
        assert row["measured"]["tokens_per_s"] == pytest.approx(64 / row["measured"]["seconds"])
    assert "2 of 2, zero3 with micro batch 2: measured" in captured.err
