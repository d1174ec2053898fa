"""The schema: itself valid, strict, and in words that a person can act on."""

from __future__ import annotations

from typing import Any

import pytest
from jsonschema import Draft202012Validator

from dsplan import schemas
from dsplan.dsconfig.auto import auto_keys
from dsplan.dsconfig.schema import validate


def test_is_a_valid_schema_with_defaults_that_fit() -> None:
    document = schemas.schema("deepspeed_config")
    Draft202012Validator.check_schema(document)

    def walk(rules: dict[str, Any], path: str) -> None:
        for key, value in rules.get("properties", {}).items():
            assert "description" in value or "$ref" in value, f"{path}.{key} has no description"
            if "default" in value:
                assert list(Draft202012Validator(value).iter_errors(value["default"])) == [], f"{path}.{key}"
            walk(value, f"{path}.{key}")

    walk(document, "")
    for name, rules in document["$defs"].items():
        walk(rules, name)


def test_missing_schema_says_where_it_looked() -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.schema\.json is in none of"):
        schemas.schema("none")


def test_installed_schemas_come_first(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wheel.schema.json").write_text('{"title": "wheel"}', encoding="utf-8")
    monkeypatch.setattr(schemas, "FOLDERS", (tmp_path, *schemas.FOLDERS))
    assert schemas.schema("wheel") == {"title": "wheel"}


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"zero_optimization": {"stage": 3.0, "reduce_bucket_size": 5e8, "overlap_comm": None}},
        {"zero_optimization": True},
        {"zero_optimization": {"offload_param": None, "leaf_module": {"classes": "Block"}}},
        {"fp16": {"loss_scale": 0.5}, "aio": None, "bf16": None},
        {"scheduler": {"type": "WarmupLR", "params": {"warmup_min_lr": 0, "warmup_max_lr": [1e-3]}}},
        {"scheduler": {"type": "CosineAnnealingLR", "params": {"T_max": 5}}},
        {"optimizer": {"type": "Muon", "params": {"muon_lr": 1}}},
        {"checkpoint": {"tag_validation": "Fail"}},
    ],
)
def test_good(document: dict[str, Any]) -> None:
    assert validate(document) == []


@pytest.mark.parametrize(
    ("document", "line"),
    [
        ({"zero_optimisation": {}}, "zero_optimisation: unknown key; did you mean zero_optimization?"),
        ({"stage": 2}, "stage: unknown key; it belongs in zero_optimization"),
        ({"xyzzy": 2}, "xyzzy: unknown key; DeepSpeed 0.19.8 has no such key here"),
        (
            {"zero_optimization": {"offload_optimizer": {"devise": "cpu"}}},
            "zero_optimization.offload_optimizer.devise: unknown key; did you mean device?",
        ),
        (
            {"zero_optimization": {"offload_param": {"device": "CPU"}}},
            'zero_optimization.offload_param.device: "CPU" is not allowed; it must be one of "none", "cpu", "nvme"',
        ),
        (
            {"zero_optimization": {"offload_optimizer": {"ratio": 2}}},
            "zero_optimization.offload_optimizer.ratio: 2 is not allowed; "
            "it must be a number of at least 0 and of at most 1",
        ),
        (
            {"activation_checkpointing": {"cpu_checkpoint": True}},
            "activation_checkpointing.cpu_checkpoint: unknown key; did you mean cpu_checkpointing?",
        ),
        (
            {"optimizer": {"type": "AdamW", "params": {"betas": [0.9]}}},
            "optimizer.params.betas: [0.9] is not allowed; "
            "it must be a list of at least 2 items and of at most 2 items",
        ),
        (
            {"data_types": {"keep_in_fp32_modules": 3}},
            'data_types.keep_in_fp32_modules: 3 is not allowed; it must be "auto" or a list',
        ),
        (
            {"fp16": {"enabled": "auto"}},
            'fp16.enabled: "auto" is not allowed; it must be true or false; '
            "only Hugging Face's integrations resolve it",
        ),
        (
            {"scheduler": {"type": "WarmupCosineLR", "params": {"total_num_steps": 9, "warmup_steps": 1}}},
            "scheduler.params.warmup_steps: unknown key; did you mean warmup_num_steps?",
        ),
    ],
)
def test_bad(document: dict[str, Any], line: str) -> None:
    assert validate(document) == [line]


def test_every_mistake_is_told_once() -> None:
    lines = validate({"zero_optimization": {"stage": "2", "stag": 1}, "fp16": 1, "scheduler": {"type": "WarmupLR"}})
    assert len(lines) == len(set(lines)) == 4


def test_auto_keys_leaves_deepspeeds_own() -> None:
    document = {"pipeline": {"stages": "auto"}, "optimizer": {"params": {"lr": "auto"}}, "train_batch_size": "auto"}
    assert auto_keys(document) == ["optimizer.params.lr", "train_batch_size"]
