"""The schema has every key that the installed DeepSpeed reads, and no other; types, ranges and defaults agree."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from dsplan.dsconfig import DEEPSPEED_VERSION
from dsplan.dsconfig.removed import removed_keys
from dsplan.dsconfig.schema_keys import resolved
from dsplan.schemas import schema

pytestmark = pytest.mark.engine

ROOT = Path(__file__).parents[2]
#: Keys that no parser asks for under their dotted name, and why they are in the schema all the same.
_NOT_READ = {
    "$schema": "names the schema for an editor; DeepSpeed ignores it",
    "data_efficiency.data_sampling.dynamic_batching.metrics_path": "read later, by the data loader",
}
#: What the engine puts into the random_ltd section by itself.
_ENGINES_OWN = {"global_batch_size", "micro_batch_size"}
#: Fields for which the schema says less, or more, than the type of the field, and why.
_OTHER_TYPES = {
    "zero_optimization.leaf_module": "a validator takes null for an empty section",
    "zero_optimization.leaf_module.classes": "a validator takes one string for a list",
    "zero_optimization.leaf_module.names": "a validator takes one string for a list",
    "zero_optimization.leaf_module.name_suffixes": "a validator takes one string for a list",
    "tensor_parallel.dtype": "a torch.dtype: no value that JSON can write",
}
_BOUNDS = {"gt": "exclusiveMinimum", "ge": "minimum", "lt": "exclusiveMaximum", "le": "maximum"}


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What DeepSpeed reads, asked in a process of its own."""
    pytest.importorskip("deepspeed")
    path = tmp_path_factory.mktemp("facts") / "facts.json"
    command = [sys.executable, "-W", "ignore", "-m", "tests.dsconfig.deepspeed_keys", str(path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _walk(
    rules: Mapping[str, Any], document: Mapping[str, Any], path: str = ""
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every key of the schema ``document``, within lists and maps too, whose own name is left out of the path."""
    if "$ref" in rules:
        rules = {**document["$defs"][rules["$ref"].rpartition("/")[2]], **rules}
    for inner in (rules.get("items"), rules.get("additionalProperties")):
        if isinstance(inner, dict):
            yield from _walk(inner, document, path)
    for key, below in rules.get("properties", {}).items():
        full = f"{path}.{key}" if path else key
        yield full, {**(document["$defs"][below["$ref"].rpartition("/")[2]] if "$ref" in below else {}), **below}
        yield from _walk(below, document, full)


def differences(document: Mapping[str, Any], facts: Mapping[str, Any]) -> list[str]:
    """Everything in which the schema ``document`` and DeepSpeed disagree."""
    keys = dict(_walk(document, document))
    found = [f"DeepSpeedConfig.{name}: a model that MODELS does not know" for name in facts["unmapped"]]
    asked = {f"{section}.{key}" if section else key for section, names in facts["read"].items() for key in names}
    read = {*asked, *facts["fields"]}
    found += [f"{key}: the schema lacks it" for key in sorted(read - set(keys) - set(removed_keys()))]
    later = {section: set(names) - _ENGINES_OWN for section, names in facts["later"].items()}
    for section, names in later.items():
        known = {key.rpartition(".")[2] for key in keys if not section or key.startswith(f"{section}.")}
        found += [f"{section}: the schema lacks {key}" for key in sorted(names - known)]
    for key in sorted(set(keys) - read - set(_NOT_READ)):
        section, _, name = key.rpartition(".")
        if section == "scheduler.params":
            continue  # test_deepspeed_parser.py compares them with the schedulers
        if section == "optimizer.params":
            if name not in facts["optimizer_arguments"]:
                found.append(f"{key}: no optimizer takes it")
        elif section.startswith("bfloat16"):
            if f"bf16.{name}" not in read:
                found.append(f"{key}: DeepSpeed does not read it")
        elif not any(name in names and (not at or key.startswith(f"{at}.")) for at, names in later.items()):
            found.append(f"{key}: DeepSpeed does not read it")
    return [*found, *_defaults(keys, facts), *_fields(keys, facts)]


def _defaults(keys: Mapping[str, Any], facts: Mapping[str, Any]) -> Iterator[str]:
    for section, names in facts["read"].items():
        for name, defaults in names.items():
            key = f"{section}.{name}" if section else name
            rules = keys.get(key, {})
            if defaults and rules and "properties" not in rules and rules.get("default", "none") not in defaults:
                yield f"{key}: the schema's default is {rules.get('default', 'none')}, DeepSpeed's {defaults}"


def _fields(keys: Mapping[str, Any], facts: Mapping[str, Any]) -> Iterator[str]:
    for key, field in facts["fields"].items():
        rules = keys.get(key)
        if rules is None:
            continue
        types = {rules["type"]} if isinstance(rules["type"], str) else set(rules["type"])
        if "any" not in field["types"] and types != set(field["types"]) and key not in _OTHER_TYPES:
            yield f"{key}: the schema's type is {sorted(types)}, DeepSpeed's {field['types']}"
        if "default" in field and (rules.get("default", "none") != field["default"]) and key not in _OTHER_TYPES:
            yield f"{key}: the schema's default is {rules.get('default', 'none')}, DeepSpeed's {field['default']}"
        for bound, limit in field["bounds"].items():
            # The schema says "at least 1" where the model says "above 0" of a whole number.
            whole = bound == "gt" and rules["type"] == "integer"
            word, value = ("minimum", limit + 1) if whole else (_BOUNDS[bound], limit)
            if rules.get(word) != value:
                yield f"{key}: the schema's {word} is {rules.get(word)}, DeepSpeed's {value}"
        allowed = rules.get("enum", rules.get("items", {}).get("enum"))
        if field["values"] and set(allowed or ()) != set(field["values"]):
            yield f"{key}: the schema allows {allowed}, DeepSpeed {field['values']}"


def test_deepspeed_is_the_one_that_the_schema_describes() -> None:
    from importlib.metadata import version

    pytest.importorskip("deepspeed")
    assert version("deepspeed") == DEEPSPEED_VERSION == schema("deepspeed_config")["x-releases"][-1]


def test_the_schema_and_deepspeed_agree(facts: dict[str, Any]) -> None:
    assert len(facts["fields"]) > 150
    assert sum(map(len, facts["read"].values())) > 150
    assert differences(schema("deepspeed_config"), facts) == []


def test_deepspeed_ignores_the_name_of_the_schema(facts: dict[str, Any]) -> None:
    """The configuration that was parsed for the facts has ``$schema``."""
    assert "$schema" not in facts["read"][""]


def test_deepspeed_asks_for_every_key_that_it_is_said_to_refuse(facts: dict[str, Any]) -> None:
    asked = {f"{section}.{key}" if section else key for section, names in facts["read"].items() for key in names}
    refused = {key for key, entry in removed_keys().items() if entry.refused and not key.startswith("compile.")}
    assert refused <= asked  # compile's own model refuses what it does not know


_Z, _DATA = "zero_optimization", "data_efficiency.data_sampling.dynamic_batching"


@pytest.mark.parametrize(
    ("section", "key"),
    [
        ("", "steps_per_print"),
        ("", "bfloat16"),
        (_Z, "parameter_alignment"),
        (f"{_Z}.offload_optimizer", "ratio"),
        (f"{_Z}.leaf_module", "names"),
        (f"{_Z}.zenflow", "overlap_step"),
        ("pipeline", "use_reentrant"),
        ("tensor_parallel", "kernel_inject"),
        ("tensor_parallel.partition_config", "strict_mode"),
        ("expert_parallel", "comm_backend"),
        ("autotuning.model_info", "profile"),
        ("checkpoint.writer", "io_multiplier"),
        (_DATA, "verbose"),
        ("data_efficiency.data_routing.random_ltd", "random_ltd_layer_id"),
    ],
)
def test_a_key_that_is_missing_or_too_many_is_told(facts: dict[str, Any], section: str, key: str) -> None:
    document = deepcopy(schema("deepspeed_config"))
    keys = _section(document, section)["properties"]
    name = f"{section}.{key}" if section else key
    taken = keys.pop(key)
    assert [line for line in differences(document, facts) if key in line and "the schema lacks" in line], name
    keys[key], keys["no_such_key"] = taken, {"type": "boolean"}
    told = differences(document, facts)
    assert len(told) == 1
    assert told[0].startswith(f"{section}.no_such_key:" if section else "no_such_key:")


@pytest.mark.parametrize(
    ("section", "key", "rules", "told"),
    [
        (_Z, "overlap_comm", {"type": "boolean"}, "type"),
        (_Z, "reduce_bucket_size", {"default": 1}, "default"),
        (_Z, "reduce_bucket_size", {"minimum": 0}, "minimum"),
        (f"{_Z}.zenflow", "topk_ratio", {"exclusiveMaximum": 2}, "exclusiveMaximum"),
        (f"{_Z}.offload_param", "device", {"enum": ["cpu"]}, "allows"),
        ("", "gradient_clipping", {"default": 0.0}, "default"),
        ("aio", "queue_depth", {"default": 16}, "default"),
    ],
)
def test_another_type_default_or_range_is_told(
    facts: dict[str, Any], section: str, key: str, rules: dict[str, Any], told: str
) -> None:
    document = deepcopy(schema("deepspeed_config"))
    _section(document, section)["properties"][key].update(rules)
    (line,) = differences(document, facts)
    assert line.startswith(f"{section}.{key}:" if section else f"{key}:")
    assert told in line


def _section(document: dict[str, Any], path: str) -> dict[str, Any]:
    rules = document
    for key in path.split(".") if path else ():
        rules = rules["properties"][key]
        if "$ref" in rules:
            rules = document["$defs"][rules["$ref"].rpartition("/")[2]]
    return rules


def test_the_walk_of_the_test_and_of_dsplan_find_the_same() -> None:
    from dsplan.dsconfig.schema_keys import every_key

    document = schema("deepspeed_config")
    fixed = {key for key, _ in every_key() if not key.startswith("scheduler.params.")}
    walked = dict(_walk(document, document))
    assert fixed <= set(walked)
    inner = ("curriculum_metrics.", "layer_specs.", "leaf_module.")
    assert {key for key in set(walked) - fixed if not any(part in key for part in inner)} == set()
    assert resolved({"$ref": "#/$defs/offload_param"})["properties"]
