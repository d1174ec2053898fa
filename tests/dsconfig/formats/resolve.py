"""Let transformers and accelerate resolve what was emitted for them: ``python -m … hf|accelerate FOLDER...``.

Prints one JSON line a folder: {"folder", "resolved", "error"}, with what DeepSpeed would get. Only the number of
ranks is stood in for: one process says that it is one of eight.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import warnings
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

RANKS = 8
HIDDEN_SIZE = 1024


def hf() -> Callable[[Path], dict[str, Any]]:
    """The Trainer's way: the argument file through HfArgumentParser, then what Trainer.train does with the model."""
    from dataclasses import dataclass, field

    from transformers import HfArgumentParser, TrainingArguments

    @dataclass
    class Arguments(TrainingArguments):
        use_cpu: bool = field(default=True)  # bf16 without a GPU is refused otherwise

        @property
        def world_size(self) -> int:
            return RANKS

    def resolve(_: Path) -> dict[str, Any]:
        (arguments,) = HfArgumentParser(Arguments).parse_json_file("training_arguments.json")
        model = SimpleNamespace(config=SimpleNamespace(hidden_size=HIDDEN_SIZE))
        arguments.hf_deepspeed_config.trainer_config_finalize(arguments, model, arguments.max_steps)
        arguments.deepspeed_plugin.set_mixed_precision(arguments.mixed_precision)  # AcceleratorState
        return dict(arguments.deepspeed_plugin.deepspeed_config)

    return resolve


def accelerate() -> Callable[[Path], dict[str, Any]]:
    """accelerate's way: launch's own arguments and environment, and the plugin that a process makes of them."""
    from accelerate.utils import DeepSpeedPlugin, patch_environment

    def resolve(folder: Path) -> dict[str, Any]:
        environment, arguments = environment_of(folder)
        with patch_environment(**environment):
            plugin = DeepSpeedPlugin()
            plugin.set_mixed_precision(environment["ACCELERATE_MIXED_PRECISION"])  # AcceleratorState
        return {
            "config": dict(plugin.deepspeed_config),
            "zero3_init": plugin.zero3_init_flag,
            "processes": [arguments.nproc_per_node, arguments.num_processes, arguments.num_machines],
            "node": [
                getattr(arguments, name, None) for name in ("nnodes", "node_rank", "rdzv_backend", "rdzv_endpoint")
            ],
        }

    return resolve


def environment_of(folder: Path) -> tuple[dict[str, str], Namespace]:
    """What ``accelerate launch`` gives its processes for the launch line in words.json, as launch_command does."""
    from accelerate.commands import launch
    from accelerate.utils.launch import prepare_deepspeed_cmd_env

    words = json.loads((folder / "words.json").read_text())
    arguments = launch.launch_command_parser().parse_args(words)
    arguments, defaults, from_file = launch._validate_launch_command(arguments)
    assert arguments.use_deepspeed
    fields = [*defaults.deepspeed_config, *(["mixed_precision"] if from_file else [])]
    arguments.deepspeed_fields_from_accelerate_config = ",".join(fields)
    command, environment = prepare_deepspeed_cmd_env(arguments)
    assert command is None  # torch's launcher, on each node
    return environment, arguments


def report(resolve: Callable[[Path], dict[str, Any]], folders: list[str]) -> None:
    """Print what ``resolve`` makes of each folder, from within it."""
    warnings.simplefilter("ignore")
    for name in folders:
        record: dict[str, Any] = {"folder": name, "resolved": None, "error": None}
        os.chdir(name)
        with contextlib.redirect_stdout(io.StringIO()):
            try:
                record["resolved"] = resolve(Path(name))
            except Exception as caught:
                record["error"] = f"{type(caught).__name__}: {caught}"
        sys.stdout.write(json.dumps(record) + "\n")
        sys.stdout.flush()


def main() -> None:
    report({"hf": hf, "accelerate": accelerate}[sys.argv[1]](), sys.argv[2:])


if __name__ == "__main__":
    main()
