"""``python -m runner.parse_config FILE... WORLD_SIZE``: DeepSpeed's own parser on configuration files.

Standard output ends with one line of JSON a file, in their order:
``{"file": ..., "accepted": bool, "error": str | null, "resolved": {...}}``. DeepSpeed's log goes to
standard error. No process group is started and no accelerator is touched.
"""

from __future__ import annotations

import contextlib
import json
import sys
from typing import Any


def parse(paths: list[str], world_size: int) -> list[dict[str, Any]]:
    """One record for each of ``paths``, read as one rank of ``world_size`` would."""
    from deepspeed.runtime.config import DeepSpeedConfig

    class Config(DeepSpeedConfig):  # type: ignore[misc]  # deepspeed is untyped
        """DeepSpeedConfig that knows the world size, which it otherwise asks a live process group for."""

        def _configure_train_batch_size(self) -> None:
            self.world_size = world_size
            super()._configure_train_batch_size()

    return [_record(Config, path) for path in paths]


def _record(config_class: type[Any], path: str) -> dict[str, Any]:
    try:
        config = config_class(path)
    except Exception as error:  # DeepSpeed raises ValueError, AssertionError, TypeError, pydantic's, ...
        return {"file": path, "accepted": False, "error": f"{type(error).__name__}: {error}", "resolved": {}}
    zero = config.zero_config
    resolved = {
        "train_batch_size": config.train_batch_size,
        "train_micro_batch_size_per_gpu": config.train_micro_batch_size_per_gpu,
        "gradient_accumulation_steps": config.gradient_accumulation_steps,
        "gradient_clipping": config.gradient_clipping,
        "fp16": config.float16_config.enabled,
        "bf16": config.bfloat16_config.enabled,
        "optimizer": config.optimizer_name,
        "scheduler": config.scheduler_name,
        "zero_optimization": zero.model_dump(mode="json", by_alias=True, exclude={"leaf_module"}),
    }
    return {"file": path, "accepted": True, "error": None, "resolved": resolved}


def main(arguments: list[str]) -> int:
    """Parse the files and write the records; 2 when the arguments are not FILE... WORLD_SIZE."""
    *paths, world_size = arguments or [""]
    if not paths or not world_size.isdecimal() or int(world_size) < 1:
        sys.stderr.write("usage: python -m runner.parse_config FILE... WORLD_SIZE\n")
        return 2
    # DeepSpeed's logger takes hold of standard output when it is imported.
    with contextlib.redirect_stdout(sys.stderr):
        records = parse(paths, int(world_size))
    sys.stdout.writelines(json.dumps(record) + "\n" for record in records)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
