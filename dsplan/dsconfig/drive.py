"""The drive that a plan swaps to, where nobody has said which folder is on it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dsplan.dsconfig.emit import NVME_PATH


def drive_note(document: Mapping[str, Any], nvme_path: object) -> str:
    """The sentence that says that a configuration's ``nvme_path`` is a placeholder; empty where it was chosen.

    Args:
        document: the DeepSpeed configuration.
        nvme_path: the folder that ``--nvme-path`` names; None where it was not given.
    """
    zero = document.get("zero_optimization")
    sections = [zero.get(key) for key in ("offload_optimizer", "offload_param")] if isinstance(zero, Mapping) else []
    placeholder = any(isinstance(section, Mapping) and section.get("nvme_path") == NVME_PATH for section in sections)
    if nvme_path is not None or not placeholder:
        return ""
    return f"{NVME_PATH} is a placeholder: name the folder of each node's NVMe drive with --nvme-path."
