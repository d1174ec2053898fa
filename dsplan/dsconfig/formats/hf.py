"""For Hugging Face's Trainer: the configuration with ``"auto"``, and the TrainingArguments that fill it in.

Source: transformers ``integrations/deepspeed.py`` (``HfTrainerDeepSpeedConfig.trainer_config_process`` and
``trainer_config_finalize``), where each key of :func:`_filled_in` stands.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from dsplan.dsconfig.formats.deepspeed import hostfile_note
from dsplan.dsconfig.formats.names import beside, require_json_name
from dsplan.dsconfig.formats.target import CONFIG_NAME, Emission, EmittedFile, Target, json_text
from dsplan.dsconfig.launch import deepspeed_line, placeholder_note, torchrun_line
from dsplan.model import ModelShape

ARGUMENTS_NAME = "training_arguments.json"
#: The Trainer's own default, written because older releases ask for it.
_OUTPUT_DIR = "trainer_output"
#: The Trainer's name of an optimizer, where it has one without another package.
_OPTIM = {"adamw": "adamw_torch", "sgd": "sgd", "adagrad": "adagrad"}


def hf(target: Target) -> Emission:
    """Both files, and the lines of the two launchers."""
    require_json_name(target.output)
    arguments_path = beside(target.output, CONFIG_NAME, ARGUMENTS_NAME)
    arguments = training_arguments(target, str(target.output))
    config = with_auto(target.document, arguments, target.model, target.cluster.world_size)
    words = [str(arguments_path)]
    return Emission(
        format="hf",
        config=config,
        config_path=target.output,
        files=(
            EmittedFile(path=target.output, content=json_text(config)),
            EmittedFile(path=arguments_path, content=json_text(arguments)),
        ),
        main=json_text(config),
        launch={
            # The usual script takes a JSON file for its arguments only when it is the sole one.
            "deepspeed": deepspeed_line(target.cluster, target.script, words, local_rank=False),
            "torchrun": torchrun_line(target.cluster, target.script, words),
        },
        notes=tuple(_notes(target, config, str(arguments_path))),
    )


def training_arguments(target: Target, config_path: str) -> dict[str, Any]:
    """The arguments of ``TrainingArguments`` that say what ``target.document`` says.

    ``optim`` and ``lr_scheduler_type`` have no effect beside the ``optimizer`` and ``scheduler`` of the file
    (transformers ``integrations/deepspeed.py``, ``deepspeed_optim_sched``); they are there so that what the
    Trainer logs is true.
    """
    document, workload = target.document, target.plan.workload
    optimizer = document.get("optimizer", {}).get("params", {})
    schedule = document.get("scheduler", {}).get("params", {})
    arguments: dict[str, Any] = {
        "output_dir": _OUTPUT_DIR,
        "deepspeed": config_path,
        "per_device_train_batch_size": workload.micro_batch_size,
        "gradient_accumulation_steps": workload.gradient_accumulation_steps,
        "bf16": workload.precision == "bf16",
        "fp16": workload.precision == "fp16",
        "max_grad_norm": target.plan.gradient_clipping,
    }
    if workload.optimizer in _OPTIM:
        arguments["optim"] = _OPTIM[workload.optimizer]
    for argument, key in (("learning_rate", "lr"), ("adam_epsilon", "eps"), ("weight_decay", "weight_decay")):
        if key in optimizer:
            arguments[argument] = optimizer[key]
    if "betas" in optimizer:
        arguments["adam_beta1"], arguments["adam_beta2"] = optimizer["betas"]
    if "total_num_steps" in schedule:
        arguments["max_steps"] = schedule["total_num_steps"]
        arguments["warmup_steps"] = schedule["warmup_num_steps"]
    if "cos_min_ratio" in schedule:
        arguments["lr_scheduler_type"] = "cosine_with_min_lr"
        arguments["lr_scheduler_kwargs"] = {"min_lr_rate": schedule["cos_min_ratio"]}
    if workload.activation_checkpointing == "torch":
        # transformers 5.23 also calls it activation_checkpointing, a name that earlier releases do not know.
        arguments["gradient_checkpointing"] = True
        arguments["gradient_checkpointing_kwargs"] = {"use_reentrant": False}
    return arguments


def with_auto(
    document: Mapping[str, Any], arguments: Mapping[str, Any], model: ModelShape, world_size: int
) -> dict[str, Any]:
    """``document`` with ``"auto"`` at exactly those keys where the Trainer fills in the value that stands there.

    What it would fill in differently keeps its value. ``steps_per_print`` goes: accelerate overwrites it
    (accelerate ``utils/dataclasses.py``, ``DeepSpeedPlugin.__post_init__``).

    Args:
        document: the plan as DeepSpeed reads it.
        arguments: the TrainingArguments that the Trainer fills in from.
        model: its width decides about the keys that the Trainer derives from ``model.config.hidden_size``.
        world_size: ranks.
    """
    config: dict[str, Any] = copy.deepcopy(dict(document))
    config.pop("steps_per_print", None)
    stage = config.get("zero_optimization", {}).get("stage", 0)
    for path, value in _filled_in(arguments, model.hidden_size, world_size, stage).items():
        *names, key = path.split(".")
        section = config
        for name in names:
            section = section.get(name, {})
        if key in section and section[key] == value:
            section[key] = "auto"
    return config


def _filled_in(arguments: Mapping[str, Any], hidden_size: int, world_size: int, stage: int) -> dict[str, Any]:
    """Dotted key -> what the Trainer writes in the place of ``"auto"``."""
    micro, steps = arguments["per_device_train_batch_size"], arguments["gradient_accumulation_steps"]
    filled = {
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": steps,
        "train_batch_size": world_size * micro * steps,
        "gradient_clipping": arguments["max_grad_norm"],
        "fp16.enabled": arguments["fp16"],
        "bf16.enabled": arguments["bf16"],
        "scheduler.params.warmup_min_lr": 0,
        "zero_optimization.reduce_bucket_size": hidden_size * hidden_size,
    }
    for path, argument in (
        ("optimizer.params.lr", "learning_rate"),
        ("optimizer.params.eps", "adam_epsilon"),
        ("optimizer.params.weight_decay", "weight_decay"),
        ("scheduler.params.warmup_max_lr", "learning_rate"),
        ("scheduler.params.total_num_steps", "max_steps"),
        ("scheduler.params.warmup_num_steps", "warmup_steps"),
    ):
        if argument in arguments:
            filled[path] = arguments[argument]
    if "adam_beta1" in arguments:
        filled["optimizer.params.betas"] = [arguments["adam_beta1"], arguments["adam_beta2"]]
    if stage == 3:
        filled["zero_optimization.stage3_prefetch_bucket_size"] = int(0.9 * hidden_size * hidden_size)
        filled["zero_optimization.stage3_param_persistence_threshold"] = 10 * hidden_size
    return filled


def _notes(target: Target, config: Mapping[str, Any], arguments_path: str) -> list[str]:
    notes = [f"{target.script} reads {arguments_path} with HfArgumentParser(TrainingArguments).parse_json_file."]
    if any(value == "auto" for value in config.get("zero_optimization", {}).values()):
        notes.append(
            f"The Trainer derives the buckets that are auto from model.config.hidden_size, {target.model.hidden_size} "
            "in this plan; a model without it is refused."
        )
    if target.plan.workload.activation_checkpointing == "deepspeed":
        notes.append(
            "The plan counts on deepspeed.checkpointing.checkpoint around every block, which models of transformers do "
            "not call; --activation-checkpointing torch plans with what gradient_checkpointing turns on."
        )
    notes += [note for note in (hostfile_note(target), placeholder_note(target.cluster)) if note]
    return notes
