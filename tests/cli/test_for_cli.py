"""``--for``: "auto" as the named framework fills it in, shown in the header and in the document."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jsonschema import validate

from dsplan.schemas import schema
from tests.cli.conftest import Run

VALID = Path(__file__).parents[1] / "data" / "configs" / "valid"
ESTIMATE = ("estimate", "--model", "gpt2", "--gpus", "4", "--gpu", "h200", "--ds-config")


def test_estimate_shows_what_the_trainer_fills_in(run: Run) -> None:
    done = run(*ESTIMATE, str(VALID / "hf_zero3.json"), "--for", "hf", "--precision", "bf16")
    assert done.code == 0
    text = " ".join(done.out.split())
    for words in (
        "hf_zero3.json, completed as transformers does:",
        "zero_optimization.reduce_bucket_size: auto -> 589,824 (hidden size squared)",
        "train_micro_batch_size_per_gpu: auto -> 8 (default of TrainingArguments.per_device_train_batch_size;",
        "bf16.enabled: auto -> true (--precision bf16)",
        "micro batch 8 x 4 GPUs x 1 accumulation step = 32 samples a step",
    ):
        assert words in text


def test_estimate_says_it_in_json_too(run: Run) -> None:
    done = run(*ESTIMATE, str(VALID / "hf_zero3.json"), "--for", "hf", "--micro-batch-size", "2", "--json")
    document = json.loads(done.out)
    validate(document, schema("estimate"))
    said = document["ds_config"]
    assert (said["consumer"], said["overrides"]) == ("hf", [])
    by_key = {item["key"]: item for item in said["inferred"]}
    assert by_key["train_micro_batch_size_per_gpu"]["value"] == 2
    assert by_key["zero_optimization.stage3_param_persistence_threshold"] == {
        "key": "zero_optimization.stage3_param_persistence_threshold",
        "before": "auto",
        "value": 7680,
        "why": "10 x hidden size",
        "by": "transformers",
    }
    strategies = json.loads(run("estimate", "--model", "gpt2", "--json").out)
    assert "ds_config" not in strategies


def test_flags_that_fill_in_are_shown(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": 1}}))
    done = run(*ESTIMATE, str(path), "--micro-batch-size", "3", "--optimizer", "adamw")
    text = " ".join(done.out.split())
    assert "train_micro_batch_size_per_gpu: not given -> 3 (the file has none)" in text
    assert 'optimizer: not given -> "adamw" (the script passes it)' in text
    assert "mine.json, completed by --optimizer:" in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((*ESTIMATE, str(VALID / "hf_zero2.json")), "--for (hf, accelerate)"),
        ((*ESTIMATE, str(VALID / "hf_zero2.json"), "--for", "accelerate"), "accelerate has no value for it"),
        ((*ESTIMATE, str(VALID / "hf_zero2.json"), "--for", "lightning"), "Lightning does not fill it in"),
        ((*ESTIMATE, str(VALID / "hf_zero2.json"), "--for", "hff"), "--for: unknown value 'hff'; did you mean hf?"),
        (("estimate", "--model", "gpt2", "--for", "hf"), "give one with --ds-config"),
        (("verify", "--for", "hf"), "give one with --ds-config"),
    ],
)
def test_what_is_refused(run: Run, arguments: tuple[str, ...], said: str) -> None:
    assert said in run(*arguments).error()


def test_verify_runs_what_the_trainer_would(run: Run, stand_in: Callable[..., list[dict[str, Any]]]) -> None:
    seen = stand_in()
    config = str(VALID / "hf_zero3.json")
    done = run("verify", "--device", "cpu", "--gpus", "2", "--steps", "6", "--ds-config", config, "--for", "hf")
    assert "auto -> 8 (default of TrainingArguments.per_device_train_batch_size" in done.err
    [spec] = seen
    assert spec["ds_config"]["zero_optimization"]["reduce_bucket_size"] == 192 * 192
    assert spec["ds_config"]["scheduler"]["params"]["total_num_steps"] == 6
    assert spec["ds_config"]["train_batch_size"] == 16
    assert "auto" not in json.dumps(spec["ds_config"])
