"""The schema: itself valid, strict, and in words that a person can act on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from dsplan import schemas
from dsplan.check.configuration import Run
from dsplan.check.run import check_files
from dsplan.dsconfig.auto import auto_keys
from dsplan.dsconfig.removed import deprecated_keys, removed_keys
from dsplan.dsconfig.schema import validate
from dsplan.dsconfig.schema_keys import every_key, rules_of


def test_is_a_valid_schema_with_defaults_that_fit() -> None:
    document = schemas.schema("deepspeed_config")
    Draft202012Validator.check_schema(document)

    walked = dict(every_key())
    assert len(walked) > 350
    for path, value in walked.items():
        assert value["description"].strip(), f"{path} has no description"
        assert value.keys() & {"type", "enum", "const", "anyOf"}, f"{path} has no type"
        if "default" in value:
            whole = {**value, "$defs": document["$defs"]}
            assert list(Draft202012Validator(whole).iter_errors(value["default"])) == [], path


#: What x-unit may say.
UNITS = {
    *("elements", "bytes", "bits", "samples", "micro batches", "steps", "epochs", "tokens", "ranks", "layers"),
    *("groups", "modules", "levels", "experiments", "processes", "threads", "requests", "buffers", "checkpoints"),
    *("overflows", "log2 of the scale", "metric"),
}
#: Annotation -> where it may stand; ``docs/ds-config-schema.md`` explains each.
ANNOTATIONS = {
    *("x-unit", "x-stages", "x-since", "x-names", "x-defaults", "x-before", "x-difference", "x-value-names"),
    *("x-values", "x-successor", "x-unless"),
}


def test_annotations_are_those_that_the_documentation_explains() -> None:
    releases = schemas.schema("deepspeed_config")["x-releases"]
    text = (Path(__file__).parents[2] / "docs" / "ds-config-schema.md").read_text(encoding="utf-8")
    for path, rules in every_key():
        found = {key for key in rules if key.startswith("x-")}
        assert found <= ANNOTATIONS, path
        assert rules.get("x-unit") in (None, *UNITS), path
        assert rules.get("x-since", releases[0]) in releases, path
        assert ("x-successor" in rules) == bool(rules.get("deprecated")), path
        for entry in (*rules.get("x-defaults", ()), *rules.get("x-names", ())):
            assert entry["until"] in releases, path
        for value in rules.get("x-values", {}).values():
            assert all(value[key] in releases for key in ("x-since", "x-removed") if key in value), path
    for annotation in (*ANNOTATIONS, "x-releases", "x-removed-keys"):
        assert f"`{annotation}`" in text, annotation


def test_every_zero_setting_says_which_stages_read_it() -> None:
    for path, rules in every_key():
        if path.startswith("zero_optimization."):
            assert set(rules["x-stages"]) <= {0, 1, 2, 3}, path
        else:
            assert "x-stages" not in rules, path
    assert rules_of("zero_optimization.sub_group_size")["x-stages"] == [3]  # type: ignore[index]


@pytest.mark.parametrize(
    ("key", "unit"),
    [
        ("zero_optimization.reduce_bucket_size", "elements"),
        ("zero_optimization.offload_param.buffer_size", "elements"),
        ("zero_optimization.stage3_max_live_parameters", "elements"),
        ("aio.block_size", "bytes"),
        ("compile.free_activation_threshold", "bytes"),
        ("train_micro_batch_size_per_gpu", "samples"),
        ("steps_per_print", "steps"),
    ],
)
def test_sizes_have_units(key: str, unit: str) -> None:
    rules = rules_of(key)
    assert rules is not None
    assert rules["x-unit"] == unit


def test_removed_keys_are_not_in_the_schema_and_their_successors_are() -> None:
    known = dict(every_key())
    releases = schemas.schema("deepspeed_config")["x-releases"]
    for key, entry in removed_keys().items():
        assert key not in known
        assert {entry.since, entry.last, entry.refused} <= {None, *releases}, key
        if entry.refused is None:
            assert entry.instead in known
            assert validate(_nested(key)) != []
    assert deprecated_keys()["zero_optimization.cpu_offload"] == '"offload_optimizer": {"device": "cpu"}'
    assert set(deprecated_keys()) <= set(known)


def _nested(key: str) -> dict[str, Any]:
    document: Any = 1
    for part in reversed(key.split(".")):
        document = {part: document}
    return dict(document)


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
        {"$schema": "https://example.org/deepspeed_config.schema.json"},
        {"compile": {"deepcompile": True, "passes": ["z3", "autotp"]}},
        {"tensor_parallel": {"autotp_size": 2, "partition_config": {"layer_specs": [{"patterns": ["a"]}]}}},
        {
            "data_efficiency": {
                "data_sampling": {
                    "curriculum_learning": {
                        "curriculum_metrics": {
                            "seqlen": {
                                "min_difficulty": 8,
                                "max_difficulty": 64,
                                "schedule_type": "fixed_linear",
                                "schedule_config": {"total_curriculum_step": 9, "difficulty_step": 8},
                            }
                        }
                    }
                }
            }
        },
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
        ({"aio": {"thread_count": 2}}, "aio.thread_count: unknown key; since 0.16.4 it is aio.intra_op_parallelism"),
        (
            {"compile": {"deep_compile": True}},
            "compile.deep_compile: unknown key; did you mean deepcompile?",
        ),
        (
            {"tensor_parallel": {"dtype": "fp16"}},
            'tensor_parallel.dtype: "fp16" is not allowed; it must be one of "auto"',
        ),
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


@pytest.mark.parametrize(
    ("document", "rule", "says"),
    [
        (
            {"tensor_parallel": {"autotp_size": 2, "partition_config": {"layer_specs": [{"pattern": ["a"]}]}}},
            "DS101",
            "ignores it",  # a plain dictionary within a section of pydantic's
        ),
        ({"tensor_parallel": {"autotp_sizes": 2}}, "DS101", "refuses it here"),
        ({"weight_quantization": {"post_init": {}}}, "DS101", "refuses it here"),
        ({"weight_quantization": {"post_init_quant": {"fc": {"num_bits": 4}}}}, None, ""),
        ({"compile": {"passes": ["z9"]}}, "DS202", "z9"),
        ({"compile": {"enabled": True}}, "DS103", "compile.enabled"),
        (
            {
                "data_efficiency": {
                    "data_sampling": {"curriculum_learning": {"curriculum_metrics": {"seqlen": {"max_dificulty": 9}}}}
                }
            },
            "DS101",
            "max_dificulty",
        ),
    ],
)
def test_the_check_looks_into_lists_and_maps(
    tmp_path: Path, document: dict[str, Any], rule: str | None, says: str
) -> None:
    path = tmp_path / "ds_config.json"
    path.write_text(json.dumps({"train_batch_size": 8, "gradient_clipping": 1.0, **document}), encoding="utf-8")
    findings = [finding for finding in check_files([path], Run()).findings if finding.severity != "note"]
    assert [finding.rule.id for finding in findings] == ([] if rule is None else [rule])
    assert all(says in finding.message for finding in findings)
