"""The configuration as DeepSpeed itself reads it, for a script that calls ``deepspeed.initialize``."""

from __future__ import annotations

from dsplan.dsconfig.formats.names import require_json_name
from dsplan.dsconfig.formats.target import Emission, EmittedFile, Target, json_text
from dsplan.dsconfig.launch import launch_command, placeholder_note

#: What the plan counts on and no key of the file can turn on.
_CHECKPOINTING = {
    "torch": "The plan counts on torch.utils.checkpoint around every block; no DeepSpeed key turns it on.",
    "deepspeed": "The plan counts on deepspeed.checkpointing.checkpoint around every block.",
}


def deepspeed(target: Target) -> Emission:
    """The document as it is."""
    require_json_name(target.output)
    text = json_text(target.document)
    return Emission(
        format="deepspeed",
        config=target.document,
        config_path=target.output,
        files=(EmittedFile(path=target.output, content=text),),
        main=text,
        launch={"deepspeed": launch_command(target.cluster, target.script, str(target.output))},
        notes=tuple(note for note in (checkpointing_note(target), hostfile_note(target)) if note),
    )


def checkpointing_note(target: Target) -> str:
    """What the model has to do where the plan recomputes activations; empty where it does not."""
    return _CHECKPOINTING.get(target.plan.workload.activation_checkpointing, "")


def hostfile_note(target: Target) -> str:
    """Which file several nodes need; empty on one node."""
    if not placeholder_note(target.cluster):
        return ""
    gpus = target.cluster.gpus_per_node
    return f'The hostfile has one line "HOST slots={gpus}" a node; --format launch writes one.'
