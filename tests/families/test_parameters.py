"""Parameters: names, shapes and order of every family are those of transformers' models on the meta device."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dsplan.catalogue import decoder_names, preset
from dsplan.families import FAMILIES
from dsplan.modelfile import shape_from_config
from tests.families.meta import parameters_of
from tests.families.shapes import SMALL

CATALOGUE = json.loads(
    (Path(__file__).parents[2] / "dsplan" / "catalog" / "decoders.json").read_text(encoding="utf-8")
)["decoders"]


def configurations() -> dict[str, dict[str, Any]]:
    """Every small configuration tied, untied and as it is; one published one of each family, of two layers."""
    found = {}
    published = {entry["config"]["model_type"]: entry for entry in CATALOGUE}
    for entry in published.values():
        config = dict(entry["config"])
        config["n_layer" if "n_layer" in config else "num_hidden_layers"] = 2
        config.pop("max_window_layers", None)
        found[entry["name"]] = config
    for name, config in [*SMALL.items(), *list(found.items())]:
        found[name] = config
        found[f"{name}, tied"] = {**config, "tie_word_embeddings": True}
        found[f"{name}, untied"] = {**config, "tie_word_embeddings": False}
    for name, config in [*SMALL.items(), *((each["name"], found[each["name"]]) for each in published.values())]:
        found[f"{name}, adapters"] = {**config, "dsplan": {"lora_rank": 4}}
        found[f"{name}, frozen"] = {**config, "dsplan": {"frozen_layers": 1}}
    return found


@pytest.mark.engine
def test_parameters_are_those_of_transformers_models() -> None:
    configs = configurations()
    assert len(configs) >= 40
    assert {config["model_type"] for config in configs.values()} == set(FAMILIES)
    for name, theirs in parameters_of(configs).items():
        shape = shape_from_config(configs[name], where=name)
        assert [(each.name, each.shape, each.trained) for each in shape.parameters] == theirs, name
        assert shape.num_parameters == sum(each.numel for each in shape.parameters), name
        assert shape.num_trained_parameters == sum(each.numel for each in shape.parameters if each.trained), name


@pytest.mark.parametrize("entry", CATALOGUE, ids=lambda entry: str(entry["name"]))
def test_a_published_decoder_has_its_count_and_its_source(entry: dict[str, Any]) -> None:
    shape = preset(entry["name"].upper())
    assert shape.num_parameters == entry["num_parameters"]
    assert shape.name == entry["name"]
    assert entry["source"].startswith("Hugging Face, ")
    kept = shape.to_config()
    assert {key: kept[key] for key in entry["config"]} == entry["config"]
    assert shape_from_config(kept, where="again", name=shape.name) == shape


#: Counts as their publishers give them on the model's page, from its weights.
PUBLISHED = {
    "llama-2-7b": 6_738_415_616,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.2-1b": 1_235_814_400,
    "mistral-7b": 7_241_732_096,
    "mixtral-8x7b": 46_702_792_704,
    "qwen2.5-7b": 7_615_616_512,
    "qwen3-8b": 8_190_735_360,
    "qwen3-30b-a3b": 30_532_122_624,
    "gemma-2b": 2_506_172_416,
    "gemma-2-9b": 9_241_705_984,
    "gemma-3-1b": 999_885_952,
    "phi-3-mini": 3_821_079_552,
    "pythia-6.9b": 6_857_302_016,
    "opt-125m": 125_239_296,
    "bloom-7b1": 7_069_016_064,
    "falcon-7b": 6_921_720_704,
    "deepseek-v2-lite": 15_706_484_224,
}


@pytest.mark.parametrize(("name", "count"), PUBLISHED.items())
def test_counts_are_those_that_are_published(name: str, count: int) -> None:
    assert preset(name).num_parameters == count


def test_names_of_decoders_are_no_names_of_mingpts() -> None:
    from dsplan.catalogue import preset_names

    names = [*decoder_names(), *preset_names()]
    assert len(names) == len(set(map(str.casefold, names)))
