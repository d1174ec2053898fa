"""The launcher's line and the integrations."""

from __future__ import annotations

import ast
import shlex

import pytest

from dsplan.dsconfig.emit import emit
from dsplan.dsconfig.launch import integrations, launch_command
from dsplan.hardware import Cluster
from dsplan.plan import Plan
from dsplan.workload import Workload

from .strategies import MODEL


def test_one_node() -> None:
    assert (
        launch_command(Cluster(gpus_per_node=4))
        == "deepspeed --num_gpus 4 train.py --deepspeed --deepspeed_config ds_config.json"
    )


def test_several_nodes_need_a_hostfile() -> None:
    command = launch_command(Cluster(gpus_per_node=8, num_nodes=2), "my train.py", "ds.json")
    assert command == (
        "deepspeed --hostfile hostfile --num_nodes 2 --num_gpus 8 'my train.py' --deepspeed --deepspeed_config ds.json"
    )


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_snippets_repeat_the_values_of_the_file(precision: str) -> None:
    cluster = Cluster(gpus_per_node=8, num_nodes=2)
    workload = Workload(micro_batch_size=3, gradient_accumulation_steps=5, precision=precision)
    document = emit(Plan(name="p", workload=workload), MODEL, cluster)
    snippets = dict(integrations(document, cluster))
    assert set(snippets) == {"Hugging Face Trainer", "accelerate", "Lightning"}

    trainer = snippets["Hugging Face Trainer"]
    call = ast.parse(trainer.replace(", ...)", ")"), mode="eval").body
    assert isinstance(call, ast.Call)
    values = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
    assert values["per_device_train_batch_size"] == 3
    assert values["gradient_accumulation_steps"] == 5
    assert values["learning_rate"] == document["optimizer"]["params"]["lr"]
    assert [values["adam_beta1"], values["adam_beta2"]] == document["optimizer"]["params"]["betas"]
    assert values["max_steps"] == 10_000
    assert [name for name in ("fp16", "bf16") if values.get(name)] == ([] if precision == "fp32" else [precision])

    words = shlex.split(snippets["accelerate"], comments=True)
    assert words[words.index("--num_processes") + 1] == "16"
    assert words[-1] == "train.py"

    ast.parse(snippets["Lightning"])
    assert "accumulate_grad_batches=5" in snippets["Lightning"]
    assert 'del config["gradient_accumulation_steps"]' in snippets["Lightning"]


def test_accelerate_without_an_optimizer_needs_no_stand_in() -> None:
    cluster = Cluster()
    document = emit(Plan(name="p"), MODEL, cluster)
    del document["optimizer"], document["scheduler"]
    assert dict(integrations(document, cluster))["accelerate"].endswith("--num_processes 1 train.py")
