"""The plan that a configuration asks for, for the rules that weigh memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dsplan.check.configuration import Configuration
from dsplan.errors import InputError

if TYPE_CHECKING:
    from dsplan.model import ModelShape
    from dsplan.plan import Plan


def ranks_of(config: Configuration) -> int:
    """Ranks of the run: those of the machines, those that were named, or one."""
    return config.run.cluster.world_size if config.run.cluster is not None else config.run.world_size or 1


def plan_of(config: Configuration, model: ModelShape) -> Plan:
    """What ``dsplan estimate --ds-config`` plans from the file.

    Raises:
        InputError: the configuration is not a file of its own without mistakes, or has what is not modelled.
    """
    if not config.alone or not config.complete:
        raise InputError("only a file of its own, without syntax errors, is estimated")
    from dsplan.dsconfig.read import read_ds_config  # 60 ms that only a model needs

    try:
        return read_ds_config(
            config.path,
            world_size=ranks_of(config),
            sequence_length=config.run.sequence_length or model.max_position_embeddings,
            optimizer=None if config.has("optimizer") else "adamw",
        ).plan
    except InputError as error:
        raise InputError(str(error).removeprefix(f"{config.path}: ")) from error
