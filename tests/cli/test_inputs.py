"""Options become a model, a cluster and plans; every mistake is named with its flag."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from dsplan import detect
from dsplan.catalogue import accelerator, preset
from dsplan.cli.inputs import Inputs, read_inputs
from dsplan.cli.options import MachineOptions, ModelOptions, WorkloadOptions
from dsplan.errors import InputError
from dsplan.units import GIB
from tests.cli.conftest import Run
from tests.report import estimates

GPT2 = ModelOptions(model="gpt2")


@pytest.fixture(autouse=True)
def strategies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dsplan.strategies", estimates)  # it has standard_plans


def inputs(model: ModelOptions = GPT2, machine: dict[str, Any] | None = None, **workload: Any) -> Inputs:
    return read_inputs(model, WorkloadOptions(**workload), MachineOptions(**(machine or {})))


def config(tmp_path: Path, **document: Any) -> Path:
    path = tmp_path / "mine.json"
    base = {
        "train_micro_batch_size_per_gpu": 2,
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-4}},
        "bf16": {"enabled": True},
        "zero_optimization": {"stage": 2},
    }
    path.write_text(json.dumps({**base, **document}), encoding="utf-8")
    return path


def from_config(path: Path, **workload: Any) -> Inputs:
    return read_inputs(GPT2, WorkloadOptions(**workload), MachineOptions(gpus=4), ds_config=path)


# The model.


def test_a_count_gives_a_shape_and_says_how_with_the_names_of_flags() -> None:
    found = inputs(ModelOptions(params="1.3B"))
    assert abs(found.model.num_parameters / 1.3e9 - 1) < 0.03
    assert found.inferred is not None
    assert "--n-layer" in found.inferred
    assert "num_layers" not in found.inferred


def test_shape_flags_override_a_count() -> None:
    found = inputs(ModelOptions(params="1.3B", block_size=4096, attention="EAGER", tie_word_embeddings=True))
    assert found.model.max_position_embeddings == 4096
    assert found.model.attention == "eager"
    assert found.model.tie_word_embeddings


def test_a_preset_in_any_case_and_overrides() -> None:
    assert inputs(ModelOptions(model="GPT2")).model == preset("gpt2")
    changed = inputs(ModelOptions(model="gpt2", vocab_size=65)).model
    assert (changed.vocab_size, changed.num_layers, changed.name) == (65, 12, "gpt2, changed")


def test_a_model_file(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"model_type": "mingpt", "n_layer": 2, "n_head": 2, "n_embd": 8}', encoding="utf-8")
    assert inputs(ModelOptions(model=str(path))).model.num_layers == 2
    assert inputs(ModelOptions(model=str(tmp_path))).model.hidden_size == 8


def test_a_shape() -> None:
    model = inputs(ModelOptions(n_layer=15, n_head=16, n_embd=3072, dropout=0.0)).model
    assert (model.num_layers, model.num_attention_heads, model.hidden_size, model.dropout) == (15, 16, 3072, 0.0)
    assert (model.vocab_size, model.max_position_embeddings) == (50257, 1024)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, ["--params 45B", "--model", "--n-layer"]),
        ({"params": "45Q"}, ["--params: '45Q'", "45B"]),
        ({"params": "0"}, ["--params", "at least 1"]),
        ({"params": "-1B"}, ["--params: '-1B'"]),
        ({"params": "45B", "model": "gpt2"}, ["--params 45B", "--model gpt2", "contradict"]),
        ({"params": "45B", "n_layer": 2, "n_embd": 128}, ["--params 45B", "--n-layer", "--n-embd", "contradicts"]),
        ({"model": "gtp2"}, ["--model: 'gtp2'", "did you mean gpt2", "1.7B"]),
        ({"model": "175B"}, ["--model: '175B'", "did you mean --params 175B"]),
        ({"model": "none/such.json"}, ["none/such.json: no such model file"]),
        ({"n_layer": 2}, ["--n-head, --n-embd: missing"]),
        ({"n_layer": 0, "n_head": 1, "n_embd": 1}, ["--n-layer: 0", "at least 1"]),
        ({"n_layer": 1, "n_head": -1, "n_embd": 1}, ["--n-head: -1", "at least 1"]),
        ({"n_layer": 1, "n_head": 7, "n_embd": 1024}, ["--n-head: 7 heads do not divide", "8"]),
        ({"n_layer": 1, "n_head": 9, "n_embd": 8}, ["--n-head", "--n-embd 8"]),
        ({"n_layer": 10**9, "n_head": 1, "n_embd": 8}, ["--n-layer: 1000000000", "at most"]),
        ({"n_layer": 1, "n_head": 1, "n_embd": 10**9}, ["--n-embd: 1000000000", "at most"]),
        ({"model": "gpt2", "vocab_size": 0}, ["--vocab-size: 0"]),
        ({"model": "gpt2", "attention": "flash"}, ["--attention: unknown value 'flash'", "eager, sdpa"]),
        ({"model": "gpt2", "activation": "gelu_nwe"}, ["--activation", "did you mean gelu_new"]),
        ({"model": "gpt2", "dropout": 1.0}, ["--dropout: 1.0"]),
    ],
)
def test_a_wrong_model(options: dict[str, Any], said: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        inputs(ModelOptions(**options))
    for words in said:
        assert words in str(caught.value)


# The machine.


def test_without_a_device_there_is_none() -> None:
    cluster = inputs().cluster
    assert cluster.accelerator is None
    assert (cluster.gpus_per_node, cluster.num_nodes, cluster.host_memory_bytes) == (1, 1, None)


def test_the_device_of_this_machine_with_its_count_and_host_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detect, "local_accelerator", lambda: accelerator("h200"))
    monkeypatch.setattr(detect, "local_gpu_count", lambda: 4)
    cluster = inputs().cluster
    assert cluster.accelerator is accelerator("h200")
    assert (cluster.gpus_per_node, cluster.host_memory_bytes) == (4, 2**40)
    assert inputs(machine={"gpus": 2}).cluster.gpus_per_node == 2


def test_a_named_device_says_nothing_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detect, "local_accelerator", lambda: pytest.fail("asked for the local device"))
    cluster = inputs(machine={"gpu": "NVIDIA T4", "gpus": 8, "nodes": 2, "host_memory": "1TB"}).cluster
    assert cluster.accelerator is accelerator("t4")
    assert (cluster.world_size, cluster.host_memory_bytes) == (16, 10**12)


def test_device_memory_replaces_the_catalogues_figure() -> None:
    named = inputs(machine={"gpu": "h200", "device_memory": "40GiB"}).cluster.accelerator
    unnamed = inputs(machine={"device_memory": "40GiB"}).cluster.accelerator
    assert named is not None
    assert unnamed is not None
    assert (named.name, named.memory_bytes) == ("h200", 40 * GIB)
    assert (unnamed.name, unnamed.memory_bytes) == ("custom", 40 * GIB)


@pytest.mark.parametrize(
    ("machine", "said"),
    [
        ({"gpu": "h20"}, ["--gpu: unknown name 'h20'", "h200"]),
        ({"gpu": "a100"}, ["--gpu: 'a100'", "a100-40gb or a100-80gb"]),
        ({"gpus": 0}, ["--gpus: 0"]),
        ({"nodes": -1}, ["--nodes: -1"]),
        ({"host_memory": "lots"}, ["--host-memory: 'lots'", "1TB"]),
        (
            {"host_memory": "512"},
            ["--host-memory: 512 bytes is not allowed", "256 MiB; for gigabytes write 512GB"],
        ),
        ({"host_memory": "5kB"}, ["--host-memory: 5000 bytes is not allowed; at least 256 MiB"]),
        ({"gpu": "t4", "device_memory": "many"}, ["--device-memory: 'many'"]),
        ({"gpu": "t4", "device_memory": "1MiB"}, ["--device-memory", "256 MiB"]),
    ],
)
def test_a_wrong_machine(machine: dict[str, Any], said: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        inputs(machine=machine)
    for words in said:
        assert words in str(caught.value)


# The plans.


def test_the_workload_has_the_models_sequence_and_the_devices_precision() -> None:
    workload = inputs().plans[0].workload
    assert (workload.sequence_length, workload.micro_batch_size, workload.precision) == (1024, 1, "bf16")
    assert inputs(machine={"gpu": "t4"}).plans[0].workload.precision == "fp16"
    assert inputs(machine={"gpu": "h100"}).plans[0].workload.precision == "bf16"


def test_the_workload_as_given() -> None:
    found = inputs(seq_len=512, micro_batch_size=4, gradient_accumulation_steps=3, precision="16", optimizer="AdamW")
    workload = found.plans[0].workload
    assert (workload.sequence_length, workload.micro_batch_size, workload.gradient_accumulation_steps) == (512, 4, 3)
    assert (workload.precision, workload.optimizer) == ("fp16", "adamw")


def test_checkpointing_keeps_the_plans_of_its_kind() -> None:
    kinds = {plan.workload.activation_checkpointing for plan in inputs().plans}
    assert kinds == {"none", "torch"}
    for kind in ("none", "torch", "deepspeed"):
        plans = inputs(activation_checkpointing=kind).plans
        assert {plan.workload.activation_checkpointing for plan in plans} == {kind}
        assert len(plans) == len(estimates.ZEROS)


def test_the_nvme_path_reaches_the_plans_that_offload_to_it() -> None:
    plans = {plan.name: plan.zero for plan in inputs(machine={"nvme_path": Path("/scratch")}).plans}
    assert plans["zero3-nvme"].offload_optimizer.nvme_path == "/scratch"
    assert plans["zero3-nvme"].offload_param.nvme_path == "/scratch"
    assert plans["zero3-offload"].offload_optimizer.nvme_path is None


@pytest.mark.parametrize(
    ("workload", "said"),
    [
        ({"precision": "fp17"}, ["--precision: unknown value 'fp17'", "did you mean fp16", "bf16"]),
        ({"optimizer": "adamx"}, ["--optimizer: unknown value 'adamx'", "did you mean adam", "lion"]),
        ({"activation_checkpointing": "full"}, ["--activation-checkpointing", "none, torch, deepspeed"]),
        ({"seq_len": 2048}, ["--seq-len: 2048", "1024 positions", "--block-size 2048"]),
        ({"seq_len": 0}, ["--seq-len: 0"]),
        ({"micro_batch_size": 0}, ["--micro-batch-size: 0"]),
        ({"gradient_accumulation_steps": -2}, ["--gradient-accumulation-steps: -2"]),
    ],
)
def test_a_wrong_workload(workload: dict[str, Any], said: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        inputs(**workload)
    for words in said:
        assert words in str(caught.value)


@pytest.mark.parametrize(
    ("name", "workload", "said"),
    [
        ("zero3", {"activation_checkpointing": "torch"}, "--activation-checkpointing torch, whose plan is zero3-ckpt"),
        ("zero3-ckpt", {"activation_checkpointing": "none"}, "--activation-checkpointing none; allowed: zero0, zero1"),
        ("zero3-offload", {"optimizer": "sgd"}, "--optimizer sgd, which has no such plan; allowed: zero0, zero1"),
        ("zero3-nvme-ckpt", {"optimizer": "muon"}, "--optimizer muon, which has no such plan"),
        ("zero-3", {}, "unknown value 'zero-3'; did you mean zero3"),
    ],
)
def test_a_plan_that_another_option_excludes(
    name: str, workload: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # the real strategies
    with pytest.raises(InputError) as caught:
        read_inputs(GPT2, WorkloadOptions(**workload), MachineOptions(gpu="t4"), plan=name)
    assert said in str(caught.value)


def test_ddp_of_a_decoder_has_no_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    with pytest.raises(InputError, match="--plan ddp: DDP is planned for minGPTs only, and opt-125m is none"):
        read_inputs(ModelOptions(model="opt-125m"), WorkloadOptions(), MachineOptions(gpu="t4"), plan="ddp")


# A DeepSpeed configuration.


def test_a_configuration_is_exactly_one_plan(tmp_path: Path) -> None:
    [plan] = from_config(config(tmp_path, gradient_accumulation_steps=3), seq_len=256).plans
    assert (plan.name, plan.zero.stage) == ("mine", 2)
    workload = plan.workload
    assert (workload.micro_batch_size, workload.gradient_accumulation_steps, workload.sequence_length) == (2, 3, 256)
    assert (workload.precision, workload.activation_checkpointing) == ("bf16", "none")


def test_flags_that_agree_with_the_configuration_pass(tmp_path: Path) -> None:
    [plan] = from_config(config(tmp_path), precision="bf16", micro_batch_size=2, optimizer="adamw").plans
    assert plan.workload.micro_batch_size == 2


def test_flags_give_what_the_configuration_leaves_out(tmp_path: Path) -> None:
    path = config(tmp_path)
    document = json.loads(path.read_text(encoding="utf-8"))
    del document["train_micro_batch_size_per_gpu"], document["optimizer"]
    path.write_text(json.dumps(document), encoding="utf-8")
    [plan] = from_config(
        path, micro_batch_size=8, optimizer="lion", activation_checkpointing="torch", gradient_accumulation_steps=2
    ).plans
    assert (plan.workload.micro_batch_size, plan.workload.gradient_accumulation_steps) == (8, 2)
    assert (plan.workload.optimizer, plan.workload.activation_checkpointing) == ("lion", "torch")


@pytest.mark.parametrize(
    ("workload", "flag"),
    [
        ({"precision": "fp16"}, "--precision fp16"),
        ({"micro_batch_size": 4}, "--micro-batch-size 4"),
        ({"gradient_accumulation_steps": 4}, "--gradient-accumulation-steps 4"),
        ({"optimizer": "lion"}, "--optimizer lion"),
    ],
)
def test_flags_that_contradict_the_configuration(tmp_path: Path, workload: dict[str, Any], flag: str) -> None:
    path = config(tmp_path)
    with pytest.raises(InputError, match="contradicts") as caught:
        from_config(path, **workload)
    assert flag in str(caught.value)
    assert f"--ds-config {path}" in str(caught.value)


def test_pasted_benchmark_flags(run: Run) -> None:
    pasted = "estimate --n_layer 15 --n_head 16 --n_embd 3072 --gpus 8 --precision 16 --batch_size 1 --json"
    document = json.loads(run(*pasted.split()).out)
    assert document["model"]["config"]["n_layer"] == 15
    assert document["workload"]["precision"] == "fp16"
    assert document["plans"][0]["micro_batch_size"] == 1
    assert run(*pasted.split(), "--block_size", "128", "--vocab_size", "65").code == 0
