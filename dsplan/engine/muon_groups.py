"""Muon's parameter groups: matrices that Newton and Schulz orthogonalise, and the rest, which is Adam's.

Source: DeepSpeed 0.19.8 __init__.py (set_optimizer_flags), runtime/engine.py (_muon_param_groups),
runtime/zero/muon/original_muon.py (MuonWithAuxAdam.__init__).
"""

from __future__ import annotations

from functools import lru_cache

from dsplan.errors import InputError
from dsplan.families.adapters import is_adapter
from dsplan.model import ModelShape, Parameter
from dsplan.partition import FlatGroup

#: set_optimizer_flags: what the name of a matrix must not contain.
_NOT_MUON = ("embed", "lm_head")


def uses_muon(parameter: Parameter) -> bool:
    """set_optimizer_flags: of two dimensions or more, and no embedding or head by its name."""
    name = parameter.name.casefold()
    return len(parameter.shape) > 1 and not any(keyword in name for keyword in _NOT_MUON)


@lru_cache(maxsize=64)
def muon_groups(model: ModelShape, *, under_zero_init: bool = False) -> tuple[FlatGroup, FlatGroup]:
    """Muon's group and Adam's, in the optimizer's order.

    Args:
        under_zero_init: Muon sorts its matrices by shape, the largest first. Those that zero.Init has partitioned have
            none, and stay in the model's order; adapters come later and have theirs.

    Raises:
        InputError: one of the two would be empty.
    """
    parameters = model.parameters
    by_muon = [index for index, parameter in enumerate(parameters) if uses_muon(parameter)]
    by_adam = [index for index, parameter in enumerate(parameters) if not uses_muon(parameter)]
    if not by_muon or not by_adam:
        raise InputError(
            f"optimizer: muon is modelled with both matrices and other parameters to train; {model.name} has none of "
            f"{'the latter' if by_muon else 'the former'}"
        )
    if not under_zero_init or is_adapter(parameters[by_muon[0]]):
        by_muon.sort(key=lambda index: parameters[index].shape, reverse=True)
    return _group(parameters, by_muon), _group(parameters, by_adam)


def _group(parameters: tuple[Parameter, ...], indices: list[int]) -> FlatGroup:
    return FlatGroup(tuple(indices), tuple([parameters[index].numel for index in indices]))


@lru_cache(maxsize=256)
def worst_ranks_of_groups(model: ModelShape, world_size: int, *, round_robin: bool) -> tuple[int, ...]:
    """The ranks that can be the worst of both groups, Muon's first, which holds more of every element."""
    found = [rank for group in muon_groups(model) for rank in group.worst_ranks(world_size, round_robin=round_robin)]
    return tuple(dict.fromkeys(found))
