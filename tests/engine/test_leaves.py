"""Leaf modules that a configuration chooses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dsplan.catalogue import accelerator
from dsplan.dsconfig.emit import emit
from dsplan.dsconfig.read import read_document
from dsplan.engine.chosen_leaves import with_chosen_leaf
from dsplan.engine.leaves import leaf_of
from dsplan.errors import InputError
from dsplan.hardware import Cluster
from dsplan.kernels import kernels_of
from dsplan.prediction import predict
from dsplan.verdict.operations import RELEASE
from dsplan.verdict.trace import trace
from dsplan.walk import walk
from dsplan.zero import LeafModule, OffloadOptimizer, ZeroConfig
from tests.families.compared import dry
from tests.families.dry import outcomes
from tests.families.grid import RANKS, TARGET, Setting

MIXTRAL = Setting(family="Mixtral", stage=3, sequence_length=500)
LLAMA = Setting(family="Llama 3", stage=3, sequence_length=500)
CLOSE_PERCENT = 0.3


def zero_of(**leaf: tuple[str, ...]) -> ZeroConfig:
    return ZeroConfig(stage=3, leaf_module=LeafModule(**leaf))


@pytest.mark.parametrize(
    ("setting", "chosen", "leaf"),
    [
        (MIXTRAL, {}, "mlp"),
        (MIXTRAL, {"classes": ()}, ""),
        (MIXTRAL, {"classes": ("MixtralSparseMoeBlock",)}, "mlp"),
        (MIXTRAL, {"classes": ("transformers.models.qwen3_moe.modeling_qwen3_moe.Qwen3MoeSparseMoeBlock",)}, ""),
        (MIXTRAL, {"classes": (), "name_suffixes": ("mlp",)}, "mlp"),
        (MIXTRAL, {"classes": (), "names": ("model.layers.7.mlp",)}, ""),
        (LLAMA, {"classes": ()}, ""),
        (LLAMA, {"classes": ("LlamaMLP",)}, "mlp"),
        (LLAMA, {"names": tuple(f"model.layers.{layer}.mlp" for layer in range(3))}, "mlp"),
    ],
)
def test_what_is_fetched_whole(setting: Setting, chosen: dict[str, tuple[str, ...]], leaf: str) -> None:
    model = with_chosen_leaf(setting.model, zero_of(**chosen))
    assert leaf_of(model) == leaf
    assert (model == setting.model) == (leaf == leaf_of(setting.model))


@pytest.mark.parametrize(
    ("setting", "chosen", "said"),
    [
        (LLAMA, {"classes": ("LlamaAttention",)}, "LlamaAttention is not modelled as a leaf"),
        (LLAMA, {"classes": ("Linear",)}, "Linear is not modelled as a leaf"),
        (LLAMA, {"names": ("model.layers.1.mlp",)}, r"model\.layers\.1\.mlp is not modelled as a leaf"),
        (LLAMA, {"name_suffixes": ("self_attn",)}, r"model\.layers\.0\.self_attn is not modelled as a leaf"),
        (MIXTRAL, {"classes": ("MixtralExperts",)}, "MixtralExperts is not modelled as a leaf"),
    ],
)
def test_what_cannot_be_planned_is_named(setting: Setting, chosen: dict[str, tuple[str, ...]], said: str) -> None:
    with pytest.raises(InputError, match=f"leaf_module: {said}.*dry run") as caught:
        with_chosen_leaf(setting.model, zero_of(**chosen))
    assert "\n" not in str(caught.value)


def test_other_stages_have_no_leaves() -> None:
    zero = ZeroConfig(stage=2, leaf_module=LeafModule(classes=("LlamaAttention",)))
    assert with_chosen_leaf(LLAMA.model, zero) == LLAMA.model


@pytest.mark.parametrize(
    ("section", "found"),
    [
        ({}, LeafModule()),
        ({"classes": []}, LeafModule(classes=())),
        ({"classes": "LlamaMLP", "names": ["a", "b"]}, LeafModule(classes=("LlamaMLP",), names=("a", "b"))),
        ({"name_suffixes": ["mlp"]}, LeafModule(name_suffixes=("mlp",))),
    ],
)
def test_a_file_says_which(section: dict[str, Any], found: LeafModule) -> None:
    document = {
        "train_micro_batch_size_per_gpu": 1,
        "optimizer": {"type": "AdamW"},
        "zero_optimization": {"stage": 3, "leaf_module": section},
    }
    config = read_document(document, path=Path("x.json"), world_size=1)
    assert config.plan.zero.leaf_module == found
    written = emit(config.plan, LLAMA.model, Cluster(accelerator=accelerator(TARGET)))
    again = read_document(written, path=Path("x.json"), world_size=1)
    assert again.plan.zero.leaf_module == found


@pytest.mark.engine
def test_leaves_that_are_chosen_come_out_as_in_dry_runs() -> None:
    chosen = {"Mixtral": LeafModule(classes=()), "Llama 3": LeafModule(classes=("LlamaMLP",))}
    settings = {setting.family: setting for setting in (MIXTRAL, LLAMA)}
    specs = {name: setting.spec(0) for name, setting in settings.items()}
    for name, spec in specs.items():
        spec.ds_config["zero_optimization"]["leaf_module"] = {"classes": list(chosen[name].classes or ())}
    for name, record in outcomes(specs):
        assert not isinstance(record, str), f"{name}: {record}"
        plan = settings[name].plan
        plan = replace(plan, zero=replace(plan.zero, leaf_module=chosen[name]))
        found = predict(settings[name].model, plan, accelerator(TARGET), RANKS, rank=0)
        for phase in ("forward", "backward", "step"):
            ours, theirs = found.steps[-1].phases[phase].peak_bytes, getattr(dry(record), phase)
            assert abs(100 * (ours / theirs - 1)) <= CLOSE_PERCENT, (name, phase)


@pytest.mark.parametrize("offload", ["none", "cpu"])
@pytest.mark.parametrize("ranks", [1, 2])
def test_requests_of_a_mixture_are_those_of_the_walk(ranks: int, offload: str) -> None:
    """On one rank too, where nothing is gathered and so nothing of a leaf is forgotten."""
    model, kernels = MIXTRAL.model, replace(kernels_of(accelerator("h200")), whole_segments=False)
    zero = ZeroConfig(stage=3, offload_optimizer=OffloadOptimizer(device=offload))
    plan = replace(MIXTRAL.plan, zero=zero)
    found = trace(model, plan, ranks, kernels, rank=0, num_steps=3)
    live = {number for number, (size, _) in enumerate(found.operations) if size >= 0}
    live -= {other for size, other in found.operations if size == RELEASE}
    assert live
    level = peak = 0
    for size, other in found.operations:
        level += size if size >= 0 else -found.operations[other][0] if size == RELEASE else 0
        peak = max(peak, level)
    walked = walk(model, plan, ranks, kernels, rank=0)
    assert peak == pytest.approx(max(step.peak_bytes for step in walked.steps), abs=4096)
