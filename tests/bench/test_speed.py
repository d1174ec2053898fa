"""How long planning takes: reported side by side, not judged (pytest tests/bench; python -m tests.bench)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dsplan.catalogue import accelerator
from dsplan.engine import gathering
from dsplan.errors import EXIT_RUN_FAILED
from dsplan.estimate import estimate
from dsplan.hardware import Cluster
from dsplan.kernels import Kernels
from dsplan.model import ModelShape
from dsplan.strategies import standard_plans
from dsplan.walk import walk
from dsplan.workload import Workload
from tests.baselines import deepspeed_estimate
from tests.bench import __main__ as command
from tests.bench.speeds import Speed, read_speeds, section, write_speeds
from tests.bench.subjects import DEEP, STAGES, forget, plan_of

pytestmark = pytest.mark.timing

LARGE = ModelShape(num_layers=56, hidden_size=8192, num_attention_heads=16, vocab_size=65, max_position_embeddings=128)
RANKS = (8, 1024)


@pytest.mark.benchmark(group="96 layers: a plan, the first time")
@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("stage", STAGES)
def test_a_plan_of_96_layers(benchmark: Any, stage: int, ranks: int) -> None:
    plan = plan_of(stage)
    result = benchmark.pedantic(lambda: walk(DEEP, plan, ranks, Kernels()), setup=forget, rounds=3)
    assert result.steps


@pytest.mark.benchmark(group="96 layers: a plan, again")
@pytest.mark.parametrize("stage", STAGES)
def test_a_plan_that_was_made_before(benchmark: Any, stage: int) -> None:
    """As the ladder of micro batches and a sweep make them."""
    plan = plan_of(stage)
    result = benchmark.pedantic(lambda: walk(DEEP, plan, 64, Kernels()), warmup_rounds=1, rounds=3)
    assert result.steps


@pytest.mark.benchmark(group="96 layers: a plan, the first time")
@pytest.mark.parametrize("stage", STAGES)
def test_deepspeed_s_estimator(benchmark: Any, stage: int) -> None:
    """Its arithmetic alone; the real function needs the import of DeepSpeed first (python -m tests.bench)."""
    plan = plan_of(stage)
    found = benchmark.pedantic(lambda: deepspeed_estimate(DEEP, plan, 64), rounds=3)
    assert found.device_bytes > 0


@pytest.mark.benchmark(group="45B: all plans")
@pytest.mark.parametrize("card", [None, "h200"])
def test_the_whole_estimate_of_45b(benchmark: Any, card: str | None) -> None:
    cluster = Cluster(accelerator=None if card is None else accelerator(card), gpus_per_node=8)
    plans = standard_plans(LARGE, Workload(sequence_length=128))
    result = benchmark.pedantic(lambda: estimate(LARGE, plans, cluster), setup=forget, rounds=3)
    assert len(result.plans) == 16


def test_forgetting_empties_every_cache() -> None:
    walk(DEEP, plan_of(3), 8, Kernels())
    assert gathering._gather_steps.cache_info().currsize > 0
    forget()
    assert gathering._gather_steps.cache_info().currsize == 0


# What the command keeps.


def speed(what: str = "a plan, stage 0", seconds: float = 0.0012) -> Speed:
    return Speed(what=what, seconds=seconds, target_seconds=0.001, repeats=5)


def test_the_command_keeps_what_it_did_not_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """Without timing anything: the dry runs of an earlier day stay."""
    path = tmp_path / "speed.json"
    write_speeds({"dry run, stage 0": speed("dry run, stage 0", 20.0), "gone": speed("gone")}, path)
    monkeypatch.setattr(command, "SUBJECTS", {"a plan, stage 0": speed})
    monkeypatch.setattr(command, "DRY_RUNS", {"dry run, stage 0": lambda: speed("dry run, stage 0", 10.0)})
    assert command.main([], path) == 0
    assert [(each.what, each.seconds) for each in read_speeds(path)["speeds"]] == [
        ("a plan, stage 0", 0.0012),
        ("dry run, stage 0", 20.0),
    ]
    assert command.main(["--dry-run", "--json"], path) == 0
    said = json.loads(capsys.readouterr().out)
    assert [each["seconds"] for each in said["speeds"]] == [0.0012, 10.0]


def test_what_fails_is_said_and_the_rest_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    path = tmp_path / "speed.json"
    broken = {"a broken command": lambda: command._command("a broken command", "-c", "raise SystemExit('no')")}
    monkeypatch.setattr(command, "SUBJECTS", {**broken, "a plan, stage 0": speed})
    monkeypatch.setattr(command, "DRY_RUNS", {})
    assert command.main([], path) == EXIT_RUN_FAILED
    assert [each.what for each in read_speeds(path)["speeds"]] == ["a plan, stage 0"]
    assert "a broken command: failed: a broken command: exit code 1: no\n" in capsys.readouterr().err


def test_the_section_says_what_is_met(tmp_path: Path) -> None:
    write_speeds({each.what: each for each in (speed(), speed("again", 0.0005))}, tmp_path / "speed.json")
    text = section(tmp_path / "speed.json")
    assert "| a plan, stage 0 | 1.20 ms | 1 ms: **not met** |" in text
    assert "| again | 0.50 ms | 1 ms: met |" in text
    assert section(tmp_path / "none.json") == ""
