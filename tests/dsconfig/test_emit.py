"""Emitted files: what they hold, that reading them gives the plan back, and the bucket rule."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dsplan.dsconfig.buckets import LARGEST_BUCKET, SMALLEST_REDUCE_BUCKET, tuned, with_nvme_path
from dsplan.dsconfig.emit import emit
from dsplan.dsconfig.read import read_ds_config
from dsplan.dsconfig.schema import validate
from dsplan.errors import InputError
from dsplan.hardware import Cluster
from dsplan.model import ModelShape
from dsplan.plan import Plan
from dsplan.workload import Workload
from dsplan.zero import OffloadOptimizer, OffloadParam, ZeroConfig

from .strategies import CLUSTER, MODEL, every_strategy, plans


def read_back(document: dict[str, Any], plan: Plan, folder: Path) -> Plan:
    path = folder / f"{plan.name}.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    return read_ds_config(path, world_size=CLUSTER.world_size, sequence_length=plan.workload.sequence_length).plan


@pytest.mark.parametrize("plan", every_strategy(), ids=lambda plan: plan.name)
def test_every_strategy_is_valid_and_reads_back(plan: Plan, tmp_path: Path) -> None:
    document = emit(plan, MODEL, CLUSTER)
    assert validate(document) == []
    assert read_back(document, plan, tmp_path) == plan


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(plan=plans())
def test_any_plan_reads_back(plan: Plan, tmp_path: Path) -> None:
    assert read_back(emit(plan, MODEL, CLUSTER), plan, tmp_path) == plan


def test_batch_sizes_agree() -> None:
    plan = Plan(name="p", workload=Workload(micro_batch_size=3, gradient_accumulation_steps=5))
    document = emit(plan, MODEL, CLUSTER)
    assert document["train_batch_size"] == 3 * 5 * 8
    assert document["train_micro_batch_size_per_gpu"] == 3
    assert document["gradient_accumulation_steps"] == 5


@pytest.mark.parametrize(
    ("precision", "sections"),
    [
        ("bf16", {"bf16": True}),
        ("fp16", {"fp16": True}),
        ("fp32", {"fp16": False}),
    ],
)
def test_precision_sections(precision: str, sections: dict[str, bool]) -> None:
    document = emit(Plan(name="p", workload=Workload(precision=precision)), MODEL, CLUSTER)
    assert {name: document[name]["enabled"] for name in ("fp16", "bf16") if name in document} == sections
    if precision == "fp16":
        assert document["fp16"]["loss_scale"] == 0
        assert document["fp16"]["initial_scale_power"] == 16


def test_sgd_needs_the_untested_key_with_zero_only() -> None:
    workload = Workload(optimizer="sgd")
    assert "zero_allow_untested_optimizer" not in emit(Plan(name="p", workload=workload), MODEL, CLUSTER)
    plan = Plan(name="p", zero=ZeroConfig(stage=1), workload=workload)
    assert emit(plan, MODEL, CLUSTER)["zero_allow_untested_optimizer"] is True


def test_checkpointing_section_is_deepspeeds_only() -> None:
    def section(kind: str) -> Any:
        plan = Plan(name="p", workload=Workload(activation_checkpointing=kind))
        return emit(plan, MODEL, CLUSTER).get("activation_checkpointing")

    assert section("none") is None
    assert section("torch") is None
    assert section("deepspeed")["number_checkpoints"] == MODEL.num_layers


def test_torch_adam_goes_with_adam_only() -> None:
    assert emit(Plan(name="p", torch_adam=True), MODEL, CLUSTER)["optimizer"]["params"]["torch_adam"] is True
    plan = Plan(name="p", torch_adam=True, workload=Workload(optimizer="lion"))
    with pytest.raises(InputError, match="torch_adam"):
        emit(plan, MODEL, CLUSTER)


def test_nvme_gets_a_path_and_an_aio_section() -> None:
    zero = ZeroConfig(
        stage=3, offload_optimizer=OffloadOptimizer(device="nvme"), offload_param=OffloadParam(device="nvme")
    )
    document = emit(Plan(name="p", zero=zero), MODEL, CLUSTER)
    assert document["zero_optimization"]["offload_optimizer"]["nvme_path"] == "/local_nvme"
    assert document["aio"]["block_size"] == 1048576
    document = emit(Plan(name="p", zero=zero), MODEL, CLUSTER, nvme_path="/scratch")
    assert document["zero_optimization"]["offload_param"]["nvme_path"] == "/scratch"
    kept = replace(zero, offload_param=OffloadParam(device="nvme", nvme_path="/mine"))
    assert with_nvme_path(kept, "/scratch").offload_param.nvme_path == "/mine"


def test_cpu_offload_shows_pinning_and_no_nvme_buffers() -> None:
    zero = ZeroConfig(stage=2, offload_optimizer=OffloadOptimizer(device="cpu"))
    section = emit(Plan(name="p", zero=zero), MODEL, CLUSTER)["zero_optimization"]
    assert section["offload_optimizer"] == {"device": "cpu", "pin_memory": True}
    assert "offload_param" not in section


def test_schedule_steps_are_checked() -> None:
    plan = Plan(name="p")
    params = emit(plan, MODEL, CLUSTER, total_num_steps=50)["scheduler"]["params"]
    assert (params["total_num_steps"], params["warmup_num_steps"]) == (50, 1)
    with pytest.raises(InputError, match="warmup_num_steps: 51"):
        emit(plan, MODEL, CLUSTER, total_num_steps=50, warmup_num_steps=51)
    with pytest.raises(InputError, match="total_num_steps"):
        emit(plan, MODEL, CLUSTER, total_num_steps=0)


def _model(hidden_size: int, num_layers: int = 2) -> ModelShape:
    return ModelShape(num_layers=num_layers, hidden_size=hidden_size, num_attention_heads=1)


def test_tuned_follows_the_documented_rule() -> None:
    small, middle, large = _model(64), _model(4096, 24), _model(16384, 80)
    assert tuned(ZeroConfig(stage=2), small).reduce_bucket_size == small.num_parameters
    assert tuned(ZeroConfig(stage=2), _model(1024, 24)).reduce_bucket_size == SMALLEST_REDUCE_BUCKET
    assert tuned(ZeroConfig(stage=2), middle).reduce_bucket_size == 4 * 4096**2
    assert tuned(ZeroConfig(stage=2), large).reduce_bucket_size == LARGEST_BUCKET
    assert tuned(ZeroConfig(stage=1), small).allgather_bucket_size == small.num_parameters
    stage3 = tuned(ZeroConfig(stage=3), middle)
    assert stage3.stage3_prefetch_bucket_size == 9 * 4096**2 // 10
    assert stage3.stage3_param_persistence_threshold == 40960
    assert stage3.sub_group_size == 10**8


def test_tuned_gathers_an_even_number_of_an_odd_model() -> None:
    odd = ModelShape(num_layers=1, hidden_size=3, num_attention_heads=1, vocab_size=7, max_position_embeddings=4)
    assert odd.num_parameters % 2 == 1
    assert tuned(ZeroConfig(stage=2), odd).allgather_bucket_size == odd.num_parameters - 1


def test_tuned_keeps_stage_0_and_what_was_chosen() -> None:
    assert tuned(ZeroConfig(), MODEL) == ZeroConfig()
    chosen = ZeroConfig(stage=3, reduce_bucket_size=123, sub_group_size=456, stage3_max_live_parameters=789)
    result = tuned(chosen, MODEL)
    assert (result.reduce_bucket_size, result.sub_group_size, result.stage3_max_live_parameters) == (123, 456, 789)


def test_tuned_nvme_buffer_holds_the_largest_partition() -> None:
    zero = ZeroConfig(stage=3, offload_param=OffloadParam(device="nvme"))
    largest = MODEL.vocab_size * MODEL.hidden_size
    assert tuned(zero, MODEL).offload_param.buffer_size == largest
    assert tuned(zero, MODEL, world_size=7).offload_param.buffer_size == -(-largest // 7)
    assert tuned(ZeroConfig(stage=3), MODEL).offload_param == OffloadParam()


@given(stage=st.integers(1, 3), hidden_size=st.integers(1, 20000), num_layers=st.integers(1, 100))
def test_tuned_is_idempotent_and_never_larger_than_the_model(stage: int, hidden_size: int, num_layers: int) -> None:
    model = _model(hidden_size, num_layers)
    once = tuned(ZeroConfig(stage=stage), model)
    assert once.reduce_bucket_size <= model.num_parameters
    if stage < 3:
        assert once.allgather_bucket_size <= model.num_parameters
    else:
        assert once.stage3_prefetch_bucket_size <= model.num_parameters
    assert tuned(once, model) == once


def test_one_rank() -> None:
    assert emit(Plan(name="p"), MODEL, Cluster())["train_batch_size"] == 1
