"""Adapters and frozen layers: which parameters are trained, and what LoRA adds.

Names and order are those of PEFT's ``inject_adapter_in_model`` (peft/tuners/lora/layer.py): a linear layer becomes
``base_layer``, beside which are ``lora_A.default`` (r, n_in) and ``lora_B.default`` (n_out, r).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from dsplan.errors import InputError, nearest
from dsplan.families.config import ALL_LINEAR, short
from dsplan.families.decoder import Decoder
from dsplan.families.parameter import Parameter

#: What follows the name of an adapted layer in that of its first matrix.
FIRST_MATRIX = ".lora_A.default"
#: Elements of the rank of an adapter: wider ones save nothing.
HIGHEST_RANK = 65_536


def with_lora(decoder: Decoder, rank: int, targets: Sequence[str], where: str) -> Decoder:
    """``decoder`` with adapters of ``rank`` at the linear layers named in ``targets``, all else frozen.

    Args:
        targets: last parts of names (``q_proj``), or :data:`ALL_LINEAR`.

    Raises:
        InputError: a rank that is none, or a target that no layer has, with the nearest.
    """
    if isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= HIGHEST_RANK:
        raise InputError(
            f"{where}: lora_rank: {short(rank)} is not allowed; it must be an integer of 1 to {HIGHEST_RANK:,}"
        )
    known = linear_names(decoder)
    wanted = known if list(targets) == [ALL_LINEAR] else tuple(targets)
    if not wanted:
        raise InputError(f"{where}: lora_targets: none given; allowed: {ALL_LINEAR}, {', '.join(known)}")
    for target in wanted:
        if target not in known:
            near = nearest(str(target)[:80], known)
            hint = f"did you mean {' or '.join(near)}? " if near else ""
            raise InputError(
                f"{where}: lora_targets: unknown value {short(target)}; {hint}allowed: {ALL_LINEAR}, {', '.join(known)}"
            )
    return replace(
        decoder,
        before=_frozen(decoder.before),
        kinds=tuple(_adapted(kind, rank, frozenset(wanted), decoder.transposed) for kind in decoder.kinds),
        after=_frozen(decoder.after),
    )


def with_frozen_layers(decoder: Decoder, count: int, where: str) -> Decoder:
    """``decoder`` with its first ``count`` blocks frozen, and all that comes before them.

    Raises:
        InputError: more blocks than there are, or nothing is left to train.
    """
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= decoder.num_layers:
        raise InputError(
            f"{where}: frozen_layers: {short(count)} is not allowed; of {decoder.num_layers} layers it must be 1 to "
            f"{decoder.num_layers}"
        )
    if count == decoder.num_layers and not any(parameter.trained for parameter in decoder.after):
        raise InputError(
            f"{where}: frozen_layers: {count} is not allowed; nothing comes after the {count} layers, so that nothing "
            f"would be trained: at most {count - 1}"
        )
    frozen = tuple(_frozen(kind) for kind in decoder.kinds)
    kinds = len(decoder.kinds)
    return replace(
        decoder,
        before=_frozen(decoder.before),
        kinds=(*decoder.kinds, *frozen),
        layers=tuple(kind + kinds if layer < count else kind for layer, kind in enumerate(decoder.layers)),
    )


def is_adapter(parameter: Parameter) -> bool:
    """Whether a parameter is of an adapter: made after the model, and trained."""
    return ".lora_A." in parameter.name or ".lora_B." in parameter.name


def linear_names(decoder: Decoder) -> tuple[str, ...]:
    """Last parts of the names of the linear layers in the blocks, each once, in order."""
    names = (
        parameter.name.split(".")[-2]
        for kind in decoder.kinds
        for parameter in kind
        if parameter.name.endswith(".weight") and len(parameter.shape) == 2 and not _is_router(parameter)
    )
    return tuple(dict.fromkeys(names))


def _is_router(parameter: Parameter) -> bool:
    """Routers are no ``nn.Linear`` (modeling_mixtral.py MixtralTopKRouter)."""
    return parameter.name.endswith("mlp.gate.weight")


def _frozen(parameters: Sequence[Parameter]) -> tuple[Parameter, ...]:
    return tuple(replace(parameter, trained=False) for parameter in parameters)


def _adapted(block: Sequence[Parameter], rank: int, targets: frozenset[str], transposed: bool) -> tuple[Parameter, ...]:
    found: list[Parameter] = []
    for index, parameter in enumerate(block):
        module, _, last = parameter.name.rpartition(".")
        if not _has_adapter(module, parameter, targets):
            found.append(replace(parameter, trained=False))
            continue
        found.append(Parameter(f"{module}.base_layer.{last}", parameter.shape, trained=False))
        follows = block[index + 1].name.rpartition(".")[0] if index + 1 < len(block) else ""
        if follows != module:  # its bias, if it has one, comes first
            weight = next(each for each in block if each.name == f"{module}.weight")
            n_out, n_in = reversed(weight.shape) if transposed else weight.shape
            found.append(Parameter(f"{module}.lora_A.default.weight", (rank, n_in)))
            found.append(Parameter(f"{module}.lora_B.default.weight", (n_out, rank)))
    return tuple(found)


def _has_adapter(module: str, parameter: Parameter, targets: frozenset[str]) -> bool:
    return module.rpartition(".")[2] in targets and not _is_router(parameter)
