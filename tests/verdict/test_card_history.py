"""Replays against runs whose allocator was listened to on a card, in fresh processes and after other rungs.

tests/data/card_history.json holds the sums of what ``python -m tests.verdict.card_history`` wrote on an H200.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dsplan.catalogue import accelerator
from dsplan.units import MIB
from dsplan.verdict.candidates import candidates
from dsplan.verdict.pressure import replay
from tests.gpu.ladder_settings import SETTINGS
from tests.gpu.regret_settings import SETTINGS as TIMED
from tests.ladder_report import candidates_of
from tests.verdict.card_history import specification

FILE = Path(__file__).parents[1] / "data" / "card_history.json"
RUNS: list[dict[str, Any]] = json.loads(FILE.read_text(encoding="utf-8"))["runs"]
SETTING = {setting.name: setting for setting in SETTINGS}
#: On one stream, where nothing depends on time, and of as many steps as are replayed.
LADDER = [run for run in RUNS if run["climb"].startswith("gpt2-medium-z0-ckpt")]


@pytest.mark.parametrize("run", LADDER, ids=lambda run: f"{run['micro_batch_size']}-after-{run['rungs_before']}")
def test_a_fresh_process_goes_as_with_the_driver_s_order_a_later_rung_as_with_the_other(
    run: dict[str, Any],
) -> None:
    """Whether it lives, how often it gave back its cache, and what it reserved at most: to the byte where it lives.

    Where it dies there may be a segment of 2 MiB more, of DeepSpeed's bookkeeping.
    """
    found, _ = candidates_of(SETTING[run["climb"].split(":")[0]], run["micro_batch_size"])
    outcome = found.outcome(0, run["cap_bytes"], rising=run["rungs_before"] > 0)
    assert outcome.lived == run["lived"]
    assert outcome.num_retries == run["num_alloc_retries"]
    assert 0 <= run["peak_reserved_bytes"] - outcome.reserved_bytes <= 2 * MIB * (not run["lived"])


def test_a_run_of_five_steps_gave_back_its_cache_six_times() -> None:
    """gpt2-medium-z0-bf16-sdpa at 11, whose replay dies in the sixth step."""
    (run,) = [run for run in RUNS if run["climb"] == "gpt2-medium-z0-bf16-sdpa:11"]
    found, _ = candidates_of(SETTING["gpt2-medium-z0-bf16-sdpa"], run["micro_batch_size"])
    (trace,) = found.traces
    outcome = replay(
        replace(trace, operations=trace.operations[: trace.steps[5]], steps=trace.steps[:5]), run["cap_bytes"]
    )
    assert (outcome.lived, outcome.num_retries) == (True, run["num_alloc_retries"])
    assert outcome.reserved_bytes == run["peak_reserved_bytes"]
    assert not replay(trace, run["cap_bytes"]).lived


def test_what_recommend_promised_lives_and_reserves_what_was_said() -> None:
    """zero1-ckpt x 24 of gpt2-xl in 40 GiB, in ``verify``'s program and in the one that times steps."""
    runs = [run for run in RUNS if run["climb"].endswith("xl-sdpa-n1-40/zero1-ckpt:24")]
    assert len(runs) == 2
    setting = next(setting for setting in TIMED if setting.name == "xl-sdpa-n1-40")
    plan = next(plan for plan in setting.plans(24) if plan.name == "zero1-ckpt")
    found = candidates(setting.model_shape(), plan, setting.ranks, accelerator("h200"))
    outcome = found.outcome(0, setting.cap_bytes, rising=False)
    for run in runs:
        assert (run["lived"], run["num_alloc_retries"]) == (outcome.lived, outcome.num_retries) == (True, 1)
        assert run["peak_reserved_bytes"] == outcome.reserved_bytes


def test_a_climb_is_the_run_of_its_setting() -> None:
    ladder = specification("gpt2-medium-z0-ckpt", 39)
    assert ladder.memory_cap_bytes == SETTING["gpt2-medium-z0-ckpt"].cap_bytes
    assert ladder.ds_config["train_micro_batch_size_per_gpu"] == 39
    strategy = specification("xl-sdpa-n1-40/zero1-ckpt", 24)
    assert (strategy.memory_cap_bytes, strategy.activation_checkpointing) == (40 * 1024 * MIB, "torch")
    assert strategy.ds_config["zero_optimization"]["stage"] == 1
