"""The catalogue: every entry valid, sourced and found under every name that people and drivers use."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from dsplan.catalogue import accelerator, accelerators, find_accelerator, ladder, normalise, preset, preset_names
from dsplan.errors import InputError
from dsplan.units import MIB

ROOT = Path(__file__).parents[1]


def read(path: str) -> Any:
    return json.loads((ROOT / path).read_text(encoding="utf-8"))


ACCELERATORS = read("dsplan/catalog/accelerators.json")["accelerators"]
MODELS = read("dsplan/catalog/models.json")


@pytest.mark.parametrize("schema", ["model", "hardware"])
def test_the_schemas_are_schemas(schema: str) -> None:
    jsonschema.Draft202012Validator.check_schema(read(f"schemas/{schema}.schema.json"))


@pytest.mark.parametrize("entry", ACCELERATORS, ids=lambda entry: str(entry["name"]))
def test_every_accelerator_is_valid_and_sourced(entry: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator(read("schemas/hardware.schema.json")).validate(entry)
    assert len(accelerator(entry["name"]).sources) == len(entry["sources"])


@pytest.mark.parametrize(
    "broken",
    [
        {"memory_bytes": 0},
        {"memory_bytes": 80.5},
        {"kind": "tpu"},
        {"context_bytes": 600 * MIB},
        {"compute_capability": None},
        {"sources": {"memory_bytes": "a datasheet"}},
        {"colour": "green"},
        {"name": "H200"},
    ],
)
def test_the_hardware_schema_refuses(broken: dict[str, Any]) -> None:
    entry = {**next(entry for entry in ACCELERATORS if entry["name"] == "h200"), **broken}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(read("schemas/hardware.schema.json")).validate(entry)


@pytest.mark.parametrize("entry", MODELS["presets"], ids=lambda entry: str(entry["name"]))
def test_every_preset_is_valid_sourced_and_round_trips(entry: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator(read("schemas/model.schema.json")).validate(entry["config"])
    assert entry["source"]
    assert preset(entry["name"]).to_config() == entry["config"]
    assert preset(entry["name"]).name == entry["name"]


def test_no_name_stands_for_two_accelerators() -> None:
    names = [normalise(name) for entry in ACCELERATORS for name in (entry["name"], *entry["aliases"])]
    assert sorted(names) == sorted(set(names))


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("h200", "h200"),
        ("H200", "h200"),
        ("NVIDIA H200", "h200"),
        ("Tesla T4", "t4"),
        ("Tesla V100-SXM2-16GB", "v100-16gb"),
        ("Tesla V100-PCIE-32GB", "v100-32gb"),
        ("NVIDIA A100-SXM4-40GB", "a100-40gb"),
        ("NVIDIA A100 80GB PCIe", "a100-80gb"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100"),
        ("NVIDIA B200", "b200"),
        ("NVIDIA GeForce RTX 3090", "rtx-3090"),
        ("rtx 4090", "rtx-4090"),
        ("RTX4090", "rtx-4090"),
        ("NVIDIA TITAN RTX", "titan-rtx"),
        ("TITAN RTX", "titan-rtx"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA A10G", "a10"),
        ("AMD Instinct MI300X", "mi300x"),
        ("HL-225", "gaudi2"),
        ("HL-325L", "gaudi3"),
        ("HL-205", "gaudi"),
        ("gaudi_2", "gaudi2"),
    ],
)
def test_names_that_people_and_drivers_write(name: str, key: str) -> None:
    assert accelerator(name).name == key


@pytest.mark.parametrize("name", ["NVIDIA GeForce RTX 3090 Ti", "NVIDIA L40", "NVIDIA A100X", "h100-nvl"])
def test_relatives_are_not_mistaken_for_each_other(name: str) -> None:
    assert find_accelerator(name) is None


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(InputError, match=r"unknown name 'h20'; did you mean h200") as caught:
        accelerator("h20")
    assert "gaudi3" in str(caught.value)


@pytest.mark.parametrize(("name", "sizes"), [("A100", "a100-40gb or a100-80gb"), ("v100", "v100-16gb or v100-32gb")])
def test_a_name_with_two_memory_sizes_is_not_guessed(name: str, sizes: str) -> None:
    with pytest.raises(InputError, match=f"write {sizes}"):
        accelerator(name)


@pytest.mark.parametrize("entry", accelerators(), ids=lambda entry: str(entry.name))
def test_figures_follow_from_the_architecture(entry: Any) -> None:
    if entry.kind == "cuda":
        major = int(entry.compute_capability.split(".")[0])
        assert entry.bf16 == (major >= 8)
        # torch CublasHandlePool.cpp: 32 MiB for major 9, 10 and 12, else :4096:2:16:8.
        assert entry.cublas_workspace_bytes == (32 * MIB if major in {9, 10, 12} else (2 * 4096 + 8 * 16) * 1024)
    if entry.kind == "hpu":
        assert entry.cublas_workspace_bytes == 0
    # The size in the label is the vendor's, decimal or binary: what the driver reports is within 8 % of it.
    vendor = int(re.findall(r"(\d+)GB", entry.label)[-1])
    assert 0.92 * vendor * 1024**3 < entry.memory_bytes <= 1.08 * vendor * 10**9


def test_the_h200_is_as_measured() -> None:
    h200 = accelerator("h200")
    assert h200.memory_bytes == 143_771 * MIB
    assert h200.usable_bytes == 143_156 * MIB
    assert h200.context_bytes == 1309 * MIB
    assert h200.communication_bytes == 484 * MIB
    assert any("measured on H200, torch 2.11+cu130, one rank" in source for source in h200.sources)


def test_estimates_say_so() -> None:
    for entry in accelerators():
        source = next(source for source in entry.sources if source.startswith("context_bytes: "))
        assert "estimate" in source or entry.name == "h200"


@pytest.mark.parametrize(
    ("name", "num_parameters"),
    [
        ("453M", 453_943_296),
        ("1.7B", 1_700_090_880),
        ("45B", 45_105_250_304),
        # GPT-2's 124,439,808 with an untied head: + 50257 * 768.
        ("gpt2", 124_439_808 + 50257 * 768),
    ],
)
def test_preset_counts(name: str, num_parameters: int) -> None:
    assert preset(name).num_parameters == num_parameters


def test_presets_are_found_in_any_case_and_misses_get_hints() -> None:
    assert preset("GPT2-XL") is preset("GPT2-XL")
    assert preset("45b").num_layers == 56
    assert "gpt-nano" in preset_names()
    with pytest.raises(InputError, match=r"^model: unknown value 'gpt2-xxl'; did you mean gpt2-xl"):
        preset("gpt2-xxl")


def test_the_ladder_climbs_and_its_heads_are_of_usual_sizes() -> None:
    widths = [rung.hidden_size for rung in ladder()]
    assert widths == sorted(set(widths))
    for rung in ladder():
        assert rung.source
        assert rung.hidden_size % rung.num_attention_heads == 0
        size = rung.hidden_size // rung.num_attention_heads
        assert size in ({64, 128} if rung.hidden_size >= 256 else {16, 32})


def test_what_an_h200_offers_is_what_cuda_says_of_a_real_one() -> None:
    """The records of the ladders have cudaMemGetInfo's total, which leaves out the driver's share."""
    records = json.loads((Path(__file__).parent / "data" / "ladders.json").read_text(encoding="utf-8"))
    totals = {
        rank["device"]["memory_bytes"]
        for ladder in records["ladders"]
        for rung in ladder["rungs"]
        for rank in rung["ranks"]
        if "device" in rank
    }
    usable = accelerator("h200").usable_bytes
    assert usable is not None
    assert totals
    assert all(abs(total - usable) < MIB for total in totals)
