"""A plan in the words of each reader: DeepSpeed, Hugging Face's Trainer, accelerate, Lightning and the launchers."""

from __future__ import annotations

from dsplan.dsconfig.formats.target import Emission, Target
from dsplan.errors import choice

#: What ``--format`` takes.
FORMATS = ("deepspeed", "hf", "accelerate", "lightning", "launch")


def render(name: str, target: Target) -> Emission:
    """``target`` in the format called ``name``; nothing is written.

    Raises:
        InputError: an unknown format, a file name that does not suit it, or a device that its reader refuses.
    """
    from dsplan.dsconfig.formats.accelerate import accelerate
    from dsplan.dsconfig.formats.deepspeed import deepspeed
    from dsplan.dsconfig.formats.hf import hf
    from dsplan.dsconfig.formats.launch import launch
    from dsplan.dsconfig.formats.lightning import lightning
    from dsplan.dsconfig.formats.names import require_printable

    require_printable(target.output)
    formats = {"deepspeed": deepspeed, "hf": hf, "accelerate": accelerate, "lightning": lightning, "launch": launch}
    return formats[choice("--format", name, FORMATS)](target)
