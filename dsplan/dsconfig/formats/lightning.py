"""For Lightning: the configuration that its DeepSpeedStrategy takes, and a Trainer with the same values.

Source: pytorch-lightning 2.6.6 ``strategies/deepspeed.py`` (``DeepSpeedStrategy``).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from dsplan.dsconfig.formats.deepspeed import checkpointing_note
from dsplan.dsconfig.formats.names import pair
from dsplan.dsconfig.formats.target import Emission, EmittedFile, Target, json_text
from dsplan.dsconfig.launch import placeholder_note, torchrun_line
from dsplan.errors import InputError

SNIPPET_NAME = "lightning_strategy.py"
#: ``plugins/precision/deepspeed.py``: DeepSpeed itself casts the model, so the weights come to it in fp32.
_PRECISION = {"fp32": "32-true", "fp16": "16-mixed", "bf16": "bf16-mixed"}


def lightning(target: Target) -> Emission:
    """Both files, and the lines that start the script.

    Raises:
        InputError: a device that is not CUDA's interface, which the strategy refuses (``setup_environment``).
    """
    device = target.cluster.accelerator
    if device is not None and device.kind not in ("cuda", "rocm"):
        raise InputError(
            f"--format lightning: Lightning's DeepSpeedStrategy runs on CUDA devices, not on {device.name}; "
            "choose another format or --gpu"
        )
    config_path, snippet_path = pair(target.output, SNIPPET_NAME, (".py",))
    if snippet_path != target.output:
        # A module has to have a name that Python can import.
        snippet_path = snippet_path.with_name(re.sub(r"\W", "_", snippet_path.stem) + ".py")
    config = lightning_config(target)
    snippet = _snippet(target, config_path)
    return Emission(
        format="lightning",
        config=config,
        config_path=config_path,
        files=(
            EmittedFile(path=config_path, content=json_text(config)),
            EmittedFile(path=snippet_path, content=snippet),
        ),
        main=snippet,
        launch=_launch(target),
        notes=tuple(_notes(target)),
    )


def lightning_config(target: Target) -> dict[str, Any]:
    """The document without ``gradient_accumulation_steps``, which Lightning sets itself and refuses in a file.

    At stage 3 with ``zero_allow_untested_optimizer``, which ``_initialize_deepspeed_inference`` reads without
    asking whether it is there: ``trainer.validate`` would stop with a KeyError.
    """
    config = {key: value for key, value in target.document.items() if key != "gradient_accumulation_steps"}
    if target.plan.zero.stage == 3:
        config.setdefault("zero_allow_untested_optimizer", False)
    return config


def trainer_arguments(target: Target) -> dict[str, Any]:
    """The arguments of Lightning's ``Trainer`` beside ``strategy``."""
    workload, cluster = target.plan.workload, target.cluster
    arguments: dict[str, Any] = {
        "accelerator": "gpu",
        "devices": cluster.gpus_per_node,
        "num_nodes": cluster.num_nodes,
        "precision": _PRECISION[workload.precision],
        "accumulate_grad_batches": workload.gradient_accumulation_steps,
        "gradient_clip_val": target.plan.gradient_clipping,
    }
    schedule = target.document.get("scheduler", {}).get("params", {})
    if "total_num_steps" in schedule:
        arguments["max_steps"] = schedule["total_num_steps"]
    return arguments


def _snippet(target: Target, config_path: Path) -> str:
    values = "".join(f"    {name}={_literal(value)},\n" for name, value in trainer_arguments(target).items())
    return (
        "from pytorch_lightning import Trainer\n"
        "from pytorch_lightning.strategies import DeepSpeedStrategy\n"
        "\n"
        "# Lightning asks for configure_optimizers, but optimizer and schedule are those of the configuration.\n"
        f"# The DataLoader's batch_size has to be {target.plan.workload.micro_batch_size}.\n"
        "trainer = Trainer(\n"
        f"    strategy=DeepSpeedStrategy(config={_literal(str(config_path))}),\n"
        f"{values}"
        ")\n"
    )


def _literal(value: Any) -> str:
    """``value`` in Python, with double quotes where nothing has to be escaped."""
    written = repr(value)
    plain = isinstance(value, str) and written == f"'{value}'" and '"' not in value
    return f'"{value}"' if plain else written


def _launch(target: Target) -> dict[str, str]:
    cluster = target.cluster
    if cluster.num_nodes == 1:
        return {"python": f"python {target.script}"}  # Lightning starts the other ranks itself
    return {
        "torchrun": torchrun_line(cluster, target.script, []),
        "slurm": f"srun --nodes={cluster.num_nodes} --ntasks-per-node={cluster.gpus_per_node} python {target.script}",
    }


def _notes(target: Target) -> list[str]:
    notes = [
        "Lightning sets gradient_accumulation_steps from accumulate_grad_batches and refuses it in the file.",
        checkpointing_note(target),
        placeholder_note(target.cluster),
    ]
    return [note for note in notes if note]
