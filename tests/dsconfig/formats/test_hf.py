"""For the Trainer: "auto" exactly where transformers puts the planned value, and arguments that say the same."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from dsplan.dsconfig.auto import auto_keys
from dsplan.dsconfig.deepspeed_parser import check_all_with_deepspeed
from dsplan.dsconfig.emit import emit
from dsplan.dsconfig.formats import render
from dsplan.dsconfig.formats.hf import training_arguments, with_auto
from dsplan.hardware import Cluster
from dsplan.plan import Plan
from dsplan.workload import Workload
from dsplan.zero import ZeroConfig
from tests.dsconfig.strategies import CLUSTER, MODEL, every_strategy, plans

from .readers import ONE_NODE, as_planned, resolved, target, written


def hf_target(plan: Plan, **fields: Any) -> dict[str, Any]:
    return dict(render("hf", target(plan, **fields)).config)


def leaves(section: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in section.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def another_learning_rate(folder: Path) -> Path:
    written("hf", target(Plan(name="p")), folder)
    path = folder / "training_arguments.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"learning_rate": 1.0}))
    return folder


@pytest.mark.engine
def test_transformers_resolves_every_strategy_to_the_plan(tmp_path: Path) -> None:
    """TrainingArguments takes fp16 and, with use_cpu, bf16 without a GPU: only the ranks are stood in for."""
    strategies = every_strategy()
    folders = [tmp_path / plan.name for plan in strategies]
    for plan, folder in zip(strategies, folders, strict=True):
        written("hf", target(plan), folder)
    *configs, other = resolved("hf", [*folders, another_learning_rate(tmp_path / "other")])
    wrong = [
        plan.name
        for plan, config in zip(strategies, configs, strict=True)
        if not as_planned(config, emit(plan, MODEL, CLUSTER))
    ]
    assert wrong == []

    # What the arguments say is what arrives, so that a wrong argument would have been noticed.
    assert other["optimizer"]["params"]["lr"] == 1.0
    assert not as_planned(other, emit(Plan(name="p"), MODEL, CLUSTER))

    paths = []
    for folder, config in zip(folders, configs, strict=True):
        del config["steps_per_print"]  # infinity, which JSON does not have
        paths.append(folder / "resolved.json")
        paths[-1].write_text(json.dumps(config))
    results = check_all_with_deepspeed(paths, CLUSTER.world_size)
    assert results is not None
    assert [result.error for result in results if not result.accepted] == []


def test_auto_stands_where_the_trainer_fills_in_the_planned_value() -> None:
    zero = ZeroConfig(
        stage=3,
        reduce_bucket_size=MODEL.hidden_size**2,
        stage3_prefetch_bucket_size=int(0.9 * MODEL.hidden_size**2),
        stage3_param_persistence_threshold=10 * MODEL.hidden_size,
    )
    found = hf_target(Plan(name="p", zero=zero))
    assert set(auto_keys(found)) == {
        *("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping"),
        *(f"optimizer.params.{key}" for key in ("lr", "betas", "eps", "weight_decay")),
        *("scheduler.params.total_num_steps", "scheduler.params.warmup_num_steps", "bf16.enabled"),
        "zero_optimization.reduce_bucket_size",
        "zero_optimization.stage3_prefetch_bucket_size",
        "zero_optimization.stage3_param_persistence_threshold",
    }


def test_what_the_trainer_would_fill_in_differently_keeps_its_value() -> None:
    zero = ZeroConfig(
        stage=3, reduce_bucket_size=7, stage3_prefetch_bucket_size=8, stage3_param_persistence_threshold=9
    )
    section = hf_target(Plan(name="p", zero=zero))["zero_optimization"]
    assert (section["reduce_bucket_size"], section["stage3_prefetch_bucket_size"]) == (7, 8)
    assert section["stage3_param_persistence_threshold"] == 9


def test_below_stage_3_its_buckets_are_not_filled_in() -> None:
    """trainer_config_finalize asks is_zero3 first, so that an "auto" would stay."""
    zero = ZeroConfig(stage=2, stage3_param_persistence_threshold=10 * MODEL.hidden_size)
    section = hf_target(Plan(name="p", zero=zero))["zero_optimization"]
    assert section["stage3_param_persistence_threshold"] == 10 * MODEL.hidden_size


@settings(max_examples=60, deadline=None)
@given(plan=plans())
def test_nothing_but_auto_is_changed(plan: Plan) -> None:
    what = target(plan)
    config = with_auto(what.document, training_arguments(what, "x"), MODEL, CLUSTER.world_size)
    planned = dict(leaves(emit(plan, MODEL, CLUSTER)))
    del planned["steps_per_print"]
    found = dict(leaves(config))
    assert found.keys() == planned.keys()
    assert {key for key in found if found[key] != planned[key]} == set(auto_keys(config))
    assert what.document == emit(plan, MODEL, CLUSTER)  # and not the plan's own document


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_the_arguments_say_what_the_plan_says(precision: str) -> None:
    workload = Workload(micro_batch_size=3, gradient_accumulation_steps=5, precision=precision)
    what = target(Plan(name="p", workload=workload, gradient_clipping=0.5))
    arguments = training_arguments(what, "here/ds.json")
    params, schedule = what.document["optimizer"]["params"], what.document["scheduler"]["params"]
    assert arguments == {
        "output_dir": "trainer_output",
        "deepspeed": "here/ds.json",
        "per_device_train_batch_size": 3,
        "gradient_accumulation_steps": 5,
        "bf16": precision == "bf16",
        "fp16": precision == "fp16",
        "max_grad_norm": 0.5,
        "optim": "adamw_torch",
        "learning_rate": params["lr"],
        "adam_beta1": params["betas"][0],
        "adam_beta2": params["betas"][1],
        "adam_epsilon": params["eps"],
        "weight_decay": params["weight_decay"],
        "max_steps": schedule["total_num_steps"],
        "warmup_steps": schedule["warmup_num_steps"],
        "lr_scheduler_type": "cosine_with_min_lr",
        "lr_scheduler_kwargs": {"min_lr_rate": schedule["cos_min_ratio"]},
    }


@pytest.mark.parametrize(("kind", "says"), [("none", False), ("torch", True), ("deepspeed", False)])
def test_activation_checkpointing(kind: str, says: bool) -> None:
    plan = Plan(name="p", workload=replace(Workload(), activation_checkpointing=kind))
    arguments = training_arguments(target(plan), "x")
    assert arguments.get("gradient_checkpointing", False) is says
    assert arguments.get("gradient_checkpointing_kwargs") == ({"use_reentrant": False} if says else None)
    notes = " ".join(render("hf", target(plan)).notes)
    assert ("deepspeed.checkpointing" in notes) is (kind == "deepspeed")


@pytest.mark.parametrize("cluster", [ONE_NODE, Cluster(gpus_per_node=8, num_nodes=3)])
def test_the_script_gets_the_argument_file_alone(cluster: Cluster) -> None:
    """The usual script looks for one argument that ends in .json; the launcher's --local_rank would be a second."""
    emission = render("hf", target(cluster=cluster, output="out/ds_config_a.json"))
    assert [str(file.path) for file in emission.files] == ["out/ds_config_a.json", "out/training_arguments_a.json"]
    for line in emission.launch.values():
        assert line.endswith("train.py out/training_arguments_a.json")
    assert "--no_local_rank" in emission.launch["deepspeed"]
