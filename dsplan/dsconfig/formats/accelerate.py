"""For accelerate: its configuration file, and the DeepSpeed configuration that it names.

Source: accelerate ``commands/config/config_args.py`` (``ClusterConfig``), ``commands/launch.py``
(``_validate_launch_command``) and ``utils/launch.py`` (``prepare_deepspeed_cmd_env``).
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from dsplan.dsconfig.formats.deepspeed import checkpointing_note
from dsplan.dsconfig.formats.names import pair
from dsplan.dsconfig.formats.target import Emission, EmittedFile, Target, json_text
from dsplan.dsconfig.formats.yaml import Scalar, yaml_text
from dsplan.dsconfig.launch import PORT, node_names, placeholder_note

YAML_NAME = "accelerate.yaml"


def accelerate(target: Target) -> Emission:
    """Both files, and the line of ``accelerate launch``."""
    config_path, yaml_path = pair(target.output, YAML_NAME, (".yaml", ".yml"))
    # DeepSpeedPlugin.__post_init__ overwrites the key.
    config = {key: value for key, value in target.document.items() if key != "steps_per_print"}
    text = _comment(target) + yaml_text(cluster_config(target, str(config_path)))
    return Emission(
        format="accelerate",
        config=config,
        config_path=config_path,
        files=(
            EmittedFile(path=config_path, content=json_text(config)),
            EmittedFile(path=yaml_path, content=text),
        ),
        main=text,
        launch=_launch(target, str(yaml_path)),
        notes=tuple(_notes(target, config)),
    )


def cluster_config(target: Target, config_path: str) -> dict[str, Scalar | Mapping[str, Scalar]]:
    """accelerate's own settings.

    There is no ``mixed_precision`` and nothing of DeepSpeed's beside the file: accelerate refuses both
    with ``deepspeed_config_file`` (``utils/dataclasses.py``, ``DeepSpeedPlugin._deepspeed_config_checks``)
    and takes the precision from the file (``state.py``, ``AcceleratorState.mixed_precision``).
    ``rdzv_backend`` and ``same_network`` have defaults on the command line, which win over a file.
    Several nodes are started one by one, which needs neither ssh nor a hostfile.
    """
    cluster = target.cluster
    section: dict[str, Scalar] = {
        "deepspeed_config_file": config_path,
        "zero3_init_flag": target.plan.zero.stage == 3,
    }
    machines: dict[str, Scalar] = {"machine_rank": 0, "num_machines": cluster.num_nodes}
    if cluster.num_nodes > 1:
        section["deepspeed_multinode_launcher"] = "standard"
        machines["main_process_ip"] = node_names(cluster)[0]
        machines["main_process_port"] = PORT
    return {
        "compute_environment": "LOCAL_MACHINE",
        "distributed_type": "DEEPSPEED",
        "deepspeed_config": section,
        **machines,
        "num_processes": cluster.world_size,
        "use_cpu": False,
        "debug": False,
    }


def _comment(target: Target) -> str:
    lines = ["mixed_precision is in the DeepSpeed configuration; accelerate refuses it in both places."]
    if target.cluster.num_nodes > 1:
        lines.append(f"{node_names(target.cluster)[0]} is a placeholder: the name or address of the first machine.")
    return "".join(f"# {line}\n" for line in lines)


def _launch(target: Target, yaml_path: str) -> dict[str, str]:
    words = ["accelerate", "launch", "--config_file", yaml_path]
    if target.cluster.num_nodes > 1:
        words += ["--machine_rank", "0"]
    return {"accelerate": shlex.join([*words, target.script])}


def _notes(target: Target, config: Mapping[str, Any]) -> list[str]:
    notes = []
    if "optimizer" in config:
        notes.append(
            "Optimizer and schedule are in the file: the script gives accelerator.prepare the stand-ins "
            "accelerate.utils.DummyOptim and DummyScheduler."
        )
    steps = target.plan.workload.gradient_accumulation_steps
    if steps > 1:
        # Accelerator._prepare_deepspeed takes the file's number, and warns.
        notes.append(f"The file accumulates {steps} micro batches: Accelerator(gradient_accumulation_steps={steps}).")
    if target.plan.zero.stage == 3:
        notes.append("zero3_init_flag partitions a model while it is built, for which accelerate needs transformers.")
    nodes = target.cluster.num_nodes
    if nodes > 1:
        notes.append(f"The line is run on every node with a --machine_rank of its own, from 0 to {nodes - 1}.")
    notes += [note for note in (checkpointing_note(target), placeholder_note(target.cluster)) if note]
    return notes
