"""How to start a job with an emitted configuration: the launcher's line and three integrations."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from dsplan.hardware import Cluster

HOSTFILE = "hostfile"


def launch_command(cluster: Cluster, script: str = "train.py", config_path: str = "ds_config.json") -> str:
    """The ``deepspeed`` launcher's line (DeepSpeed ``launcher/runner.py``).

    Several nodes need a hostfile with one line ``HOST slots=GPUS`` a node.
    """
    words = ["deepspeed"]
    if cluster.num_nodes > 1:
        words += ["--hostfile", HOSTFILE, "--num_nodes", str(cluster.num_nodes)]
    words += ["--num_gpus", str(cluster.gpus_per_node), script, "--deepspeed", "--deepspeed_config", config_path]
    return shlex.join(words)


def integrations(
    document: Mapping[str, Any], cluster: Cluster, script: str = "train.py", config_path: str = "ds_config.json"
) -> list[tuple[str, str]]:
    """(name, snippet) for each framework that takes the file ``document`` was written to.

    Hugging Face's Trainer compares its own arguments with the file and stops when they differ
    (transformers ``integrations/deepspeed.py``, ``fill_match``), so the snippet repeats the values.
    """
    return [
        ("Hugging Face Trainer", _trainer(document, config_path)),
        ("accelerate", _accelerate(document, cluster, script, config_path)),
        ("Lightning", _lightning(document, cluster, config_path)),
    ]


def _trainer(document: Mapping[str, Any], config_path: str) -> str:
    optimizer = document.get("optimizer", {}).get("params", {})
    schedule = document.get("scheduler", {}).get("params", {})
    arguments: dict[str, Any] = {
        "deepspeed": config_path,
        "per_device_train_batch_size": document["train_micro_batch_size_per_gpu"],
        "gradient_accumulation_steps": document["gradient_accumulation_steps"],
        "max_grad_norm": document.get("gradient_clipping", 1.0),
    }
    precision = _precision(document)
    if precision != "fp32":
        arguments[precision] = True
    for argument, section, key in (
        ("learning_rate", optimizer, "lr"),
        ("adam_epsilon", optimizer, "eps"),
        ("weight_decay", optimizer, "weight_decay"),
        ("max_steps", schedule, "total_num_steps"),
        ("warmup_steps", schedule, "warmup_num_steps"),
    ):
        if key in section:
            arguments[argument] = section[key]
    if "betas" in optimizer:
        arguments["adam_beta1"], arguments["adam_beta2"] = optimizer["betas"]
    return f"TrainingArguments({_keywords(arguments)}, ...)"


def _accelerate(document: Mapping[str, Any], cluster: Cluster, script: str, config_path: str) -> str:
    words = ["accelerate", "launch", "--use_deepspeed", "--deepspeed_config_file", config_path]
    words += ["--num_processes", str(cluster.world_size)]
    if cluster.num_nodes > 1:
        words += ["--num_machines", str(cluster.num_nodes), "--deepspeed_hostfile", HOSTFILE]
    note = "accelerate.utils.DummyOptim and DummyScheduler stand in for those of the file"
    return f"{shlex.join([*words, script])}  # {note}" if "optimizer" in document else shlex.join([*words, script])


def _lightning(document: Mapping[str, Any], cluster: Cluster, config_path: str) -> str:
    """Lightning refuses the key and sets it itself (``DeepSpeedStrategy._format_batch_size_and_grad_accum_config``)."""
    precision = {"fp32": "32-true", "fp16": "16-mixed", "bf16": "bf16-mixed"}[_precision(document)]
    arguments = {
        "devices": cluster.gpus_per_node,
        "num_nodes": cluster.num_nodes,
        "precision": precision,
        "accumulate_grad_batches": document["gradient_accumulation_steps"],
    }
    return (
        f'config = json.loads(Path({config_path!r}).read_text()); del config["gradient_accumulation_steps"]; '
        f"Trainer(strategy=DeepSpeedStrategy(config=config), {_keywords(arguments)})"
    )


def _precision(document: Mapping[str, Any]) -> str:
    return next((name for name in ("bf16", "fp16") if document.get(name, {}).get("enabled")), "fp32")


def _keywords(arguments: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in arguments.items())
