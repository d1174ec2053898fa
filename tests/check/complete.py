"""``python -m tests.check.complete FOLDER FILE...``: what transformers and accelerate make of configurations.

A file whose name begins with ``hf_`` is completed as the Trainer does, any other as accelerate does; FOLDER gets what
DeepSpeed would be given. The arguments of the script are made up.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

HIDDEN_SIZE, STEPS, RANKS = 768, 500, 8
_ARGUMENTS = {
    "world_size": RANKS, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "max_grad_norm": 1.0,
    "learning_rate": 1e-4, "adam_beta1": 0.9, "adam_beta2": 0.98, "adam_epsilon": 1e-9, "weight_decay": 0.02,
    "save_on_each_node": False, "fp16": False, "fp16_full_eval": False, "bf16": True, "bf16_full_eval": False,
    "get_warmup_steps": lambda steps: steps // 10,
}  # fmt: skip


def by_trainer(path: Path) -> dict[str, Any]:
    """``TrainingArguments.__post_init__`` and ``deepspeed_init`` of transformers, without a Trainer."""
    from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig

    config = HfTrainerDeepSpeedConfig(str(path))
    arguments = SimpleNamespace(**_ARGUMENTS)
    config.trainer_config_process(arguments)
    config.trainer_config_finalize(arguments, SimpleNamespace(config=SimpleNamespace(hidden_size=HIDDEN_SIZE)), STEPS)
    return dict(config.config)


def by_accelerate(path: Path) -> dict[str, Any]:
    """``Accelerator._prepare_deepspeed`` of accelerate, without a model."""
    from accelerate.utils import DeepSpeedPlugin

    plugin = DeepSpeedPlugin(hf_ds_config=str(path), gradient_accumulation_steps=4)
    plugin.set_mixed_precision("fp16" if json.loads(path.read_text(encoding="utf-8")).get("fp16") else "bf16")
    plugin.deepspeed_config_process(
        must_match=False,
        **{
            "gradient_accumulation_steps": 4, "gradient_clipping": 1.0, "train_micro_batch_size_per_gpu": 2,
            "train_batch_size": 2 * plugin.get_value("gradient_accumulation_steps") * RANKS,
            "zero_optimization.stage3_gather_16bit_weights_on_model_save": False,
            "zero_optimization.reduce_bucket_size": HIDDEN_SIZE**2,
            "zero_optimization.stage3_prefetch_bucket_size": HIDDEN_SIZE**2,
            "zero_optimization.stage3_param_persistence_threshold": 10 * HIDDEN_SIZE,
            "optimizer.params.lr": 1e-4, "optimizer.params.weight_decay": 0.02, "scheduler.params.warmup_min_lr": 0,
            "scheduler.params.warmup_max_lr": 1e-4, "scheduler.params.warmup_num_steps": 50,
            "scheduler.params.total_num_steps": STEPS,
        },
    )  # fmt: skip
    return {key: value for key, value in plugin.deepspeed_config.items() if key != "steps_per_print"}


def main(folder: Path, paths: list[Path]) -> None:
    for path in paths:
        complete = by_trainer if path.name.startswith("hf_") else by_accelerate
        (folder / path.name).write_text(json.dumps(complete(path)), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]])
