"""Coordinators: which of stage 3's a model and a configuration ask for."""

from __future__ import annotations

from dsplan.engine.coordinator import Coordinator
from dsplan.engine.frozen import FrozenCoordinator
from dsplan.engine.leaves import LeafCoordinator, leaf_of
from dsplan.engine.secondary import SecondaryCoordinator
from dsplan.engine.trained import all_trained
from dsplan.errors import InputError
from dsplan.model import ModelShape
from dsplan.zero import ZeroConfig


class SecondaryLeafCoordinator(SecondaryCoordinator, LeafCoordinator):
    """Both: neither's rules touch the other's."""


def coordinator_of(model: ModelShape, zero: ZeroConfig) -> type[Coordinator]:
    """The coordinator that knows what is special about ``model`` under ``zero``.

    Raises:
        InputError: secondary partitions of parameters that are not trained.
    """
    secondary, leaf = zero.zero_hpz_partition_size > 1, bool(leaf_of(model))
    if not all_trained(model):
        if secondary:
            raise InputError(
                "zero_hpz_partition_size: above 1 it is not modelled with parameters that are not trained; a dry run "
                "knows them: dsplan verify --device fake"
            )
        return FrozenCoordinator
    if secondary:
        return SecondaryLeafCoordinator if leaf else SecondaryCoordinator
    return LeafCoordinator if leaf else Coordinator
