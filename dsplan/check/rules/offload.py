"""Offload to the CPU and to NVMe."""

from __future__ import annotations

from collections.abc import Iterator

from dsplan.check.configuration import Configuration
from dsplan.check.finding import ERROR, WARNING, Finding, Rule

NO_PATH = Rule(
    id="DS701", name="no-nvme-path", severity=ERROR, summary="Offload to NVMe does not say where the drive is."
)
NO_DEVICE = Rule(
    id="DS702",
    name="no-offload-device",
    severity=WARNING,
    summary="An offload section without device offloads nothing.",
)
RULES = (NO_PATH, NO_DEVICE)

_SECTIONS = ("offload_optimizer", "offload_param")


def nvme_path(config: Configuration) -> Iterator[Finding]:
    """DeepSpeed joins the path to a folder's name and stops when there is none.

    Source: ``runtime/zero/stage3.py`` (``_configure_tensor_swapping``) and
    ``runtime/swap_tensor/partitioned_param_swapper.py`` (``_configure_aio``).
    """
    for name in _SECTIONS:
        path = f"zero_optimization.{name}"
        if config.stage == 3 and config.get(f"{path}.device") == "nvme" and not config.get(f"{path}.nvme_path"):
            message = (
                f"{name} goes to NVMe but names no folder: DeepSpeed reads the file without a word and stops later"
            )
            yield config.finding(NO_PATH, f"{path}.device", message, '"nvme_path": "/local_nvme" beside it')


def device(config: Configuration) -> Iterator[Finding]:
    """``device`` is "none" unless it is given (``runtime/zero/offload_config.py``)."""
    for name in _SECTIONS:
        section = config.section(f"zero_optimization.{name}")
        if section and "device" not in section:
            message = f"{name} has no device, which is then none: nothing is offloaded"
            yield config.finding(NO_DEVICE, f"zero_optimization.{name}", message, '"device": "cpu"')


CHECKS = (nvme_path, device)
