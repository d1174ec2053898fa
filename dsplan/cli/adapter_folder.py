"""A folder that PEFT wrote: an adapter, which is planned by the model it belongs to and ``--lora-rank``.

Source: peft ``utils/save_and_load.py`` and ``config.py`` (``CONFIG_NAME``, ``PeftConfigMixin.save_pretrained``).
"""

from __future__ import annotations

import json
from pathlib import Path

#: Bytes of the largest file that is looked at.
_LARGEST = 1024**2
_NAME = "adapter_config.json"


def adapter_hint(path: Path) -> str:
    """What to write in place of ``path``; empty where it is no adapter's folder or file."""
    file = path if path.name == _NAME else path / _NAME
    if not file.is_file() or (path.is_dir() and (path / "config.json").exists()):
        return ""
    try:
        with file.open("rb") as opened:
            config = json.loads(opened.read(_LARGEST))
        rank, base, targets = config["r"], config["base_model_name_or_path"], config["target_modules"]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return "--model MODEL --lora-rank R"
    names = ",".join(sorted(map(str, targets))) if isinstance(targets, list) else "all-linear"
    return f"--model {base} --lora-rank {rank} --lora-targets {names}"
