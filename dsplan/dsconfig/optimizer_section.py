"""The optimizer that DeepSpeed makes from the ``optimizer`` section.

Source: DeepSpeed ``runtime/engine.py`` (``_configure_basic_optimizer``,
``get_optimizer_configuration``, ``_do_optimizer_sanity_check``) and ``runtime/zero/utils.py``
(``ZERO_SUPPORTED_OPTIMIZERS``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dsplan.errors import InputError, nearest
from dsplan.plan import CPU_OPTIMIZERS
from dsplan.workload import OPTIMIZERS, parse_optimizer
from dsplan.zero import ZeroConfig

#: Optimizers that DeepSpeed or torch make from a configuration and whose states have no formula yet.
NOT_MODELLED = (
    *("Lamb", "MuAdam", "MuAdamW", "MuSGD"),
    *("Adadelta", "Adafactor", "Adamax", "ASGD", "LBFGS", "NAdam", "RAdam", "RMSprop", "Rprop", "SparseAdam"),
)
#: DeepSpeed finds these through torch.optim, which knows one spelling.
_EXACT = ("SGD",)
#: Optimizers that ZeRO takes only with zero_allow_untested_optimizer.
UNTESTED = ("sgd",)
#: Gone with ``runtime/fp16/onebit``; 0.19.6 was the last release that had them.
REMOVED = ("onebitadam", "onebitlamb", "zerooneadam")
REMOVED_SINCE = "0.19.7"
#: Classes that DeepSpeed makes for a name (``_configure_basic_optimizer``), and that are no names themselves.
CLASSES = {
    "fusedadam": "Adam",
    "deepspeedcpuadam": "Adam",
    "fusedlamb": "Lamb",
    "fusedlion": "Lion",
    "deepspeedcpulion": "Lion",
    "deepspeedcpuadagrad": "Adagrad",
}
MUON = "muon"

_COMMON = {"lr", "weight_decay"}
_ADAM = {*_COMMON, "betas", "eps", "amsgrad", "torch_adam", "adam_w_mode", "fp32_optimizer_states"}
_DEVICE_ADAM = {*_ADAM, "bias_correction", "set_grad_none"}
_CPU_ADAM = {*_ADAM, "bias_correction"}
_TORCH_ADAM = {*_ADAM, "foreach"}
#: What its own half takes and what Adam's does (runtime/engine.py, _muon_param_groups).
_MUON = {*_COMMON, "momentum", "ns_method", "muon_lr", "adam_lr", "betas", "eps", "adam_w_mode", "per_head_muon"}
#: Arguments of each optimizer that change no memory, or are checked in :data:`_MODELLED`.
_DEVICE_PARAMS = {
    "adamw": _DEVICE_ADAM,
    "adam": _DEVICE_ADAM,
    "lion": {*_COMMON, "betas", "set_grad_none"},
    "adagrad": {*_COMMON, "eps", "lr_decay", "initial_accumulator_value"},
    "sgd": {*_COMMON, "momentum", "dampening", "nesterov", "maximize"},
    "muon": {*_MUON, "torch_adam"},
}
#: The same with offload_optimizer, where DeepSpeed takes its own classes (``ops/*/cpu_*.py``).
_CPU_PARAMS = {
    **_DEVICE_PARAMS,
    "adamw": _CPU_ADAM,
    "adam": _CPU_ADAM,
    "lion": {*_COMMON, "betas", "fp32_optimizer_states"},
    "adagrad": {*_COMMON, "eps", "amsgrad", "fp32_optimizer_states"},
    "muon": {*_MUON, "torch_adam", "fp32_optimizer_states"},
}
#: Argument -> the value whose memory is modelled: others add or shrink states, or temporaries.
_MODELLED = {"amsgrad": False, "fp32_optimizer_states": True, "foreach": None, "momentum": 0, "set_grad_none": True}
#: The same of Muon, which keeps momentum whatever it is.
_MODELLED_MUON = {"ns_method": "gram", "per_head_muon": False, "torch_adam": False, "fp32_optimizer_states": True}


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerChoice:
    """dsplan's name of the optimizer, and whether torch's Adam replaces DeepSpeed's.

    ``not_modelled``: what of it the formulas do not model, for a dry run, which does.
    """

    name: str
    torch_adam: bool = False
    not_modelled: tuple[str, ...] = ()


def optimizer_of(
    document: Mapping[str, Any], zero: ZeroConfig, client: str | None, *, dry_run: bool = False
) -> OptimizerChoice:
    """The optimizer of ``document``; ``client`` names the one that the script passes when there is no section.

    With ``dry_run`` also one that only a dry run covers.

    Raises:
        InputError: no optimizer at all; one that is unknown, misspelled or not modelled; an argument
            that it does not take or that changes memory; or ZeRO would refuse it.
    """
    section = document.get("optimizer")
    choice = _from_script(document, zero, client) if section is None else _from_section(section, zero, dry_run)
    if choice.name in UNTESTED and zero.stage > 0 and not document.get("zero_allow_untested_optimizer", False):
        raise InputError(
            f"optimizer.type: ZeRO takes {OPTIMIZERS[choice.name]} only with "
            '"zero_allow_untested_optimizer": true at the top level'
        )
    return choice


def _from_script(document: Mapping[str, Any], zero: ZeroConfig, client: str | None) -> OptimizerChoice:
    if client is None:
        raise InputError(
            "optimizer: the file has none, so DeepSpeed takes the one that the script passes; "
            "add the section or name it with --optimizer"
        )
    if zero.offloads_optimizer and not document.get("zero_force_ds_cpu_optimizer", True):
        raise InputError(
            "zero_force_ds_cpu_optimizer: false with offload_optimizer is not modelled yet; remove it, or name the "
            "optimizer in the file"
        )
    name = parse_optimizer(client)
    # A script's Adam is torch's, except with offload, where DeepSpeed takes its own CPU classes only.
    return OptimizerChoice(name=name, torch_adam=name in ("adam", "adamw") and not zero.offloads_optimizer)


def _from_section(section: Mapping[str, Any], zero: ZeroConfig, dry_run: bool) -> OptimizerChoice:
    given, params = section["type"], section.get("params", {})
    name = _name(given)
    torch_adam = bool(params.get("torch_adam", False)) and name != MUON
    modelled = _MODELLED_MUON if name == MUON else _MODELLED
    not_modelled = []
    if dry_run and zero.offloads_optimizer and name not in CPU_OPTIMIZERS:
        not_modelled.append(f"optimizer.type = {given!r} with offload_optimizer")
    known = _TORCH_ADAM if torch_adam else (_CPU_PARAMS if zero.offloads_optimizer else _DEVICE_PARAMS)[name]
    for key, value in params.items():
        if key not in known:
            near = nearest(key, known)
            hint = f"did you mean {' or '.join(near)}? " if near else ""
            raise InputError(
                f"optimizer.params.{key}: {section['type']} does not take it, or it is not modelled yet; "
                f"{hint}known: {', '.join(sorted(known))}"
            )
        if key in modelled and value != modelled[key]:
            if dry_run:
                not_modelled.append(f"optimizer.params.{key} = {value!r}")
                continue
            raise InputError(
                f"optimizer.params.{key}: {value!r} changes memory and is not modelled yet "
                f"(modelled: {modelled[key]!r})"
            )
    return OptimizerChoice(name=name, torch_adam=torch_adam, not_modelled=tuple(not_modelled))


def _name(given: str) -> str:
    name = given.casefold()
    if name not in OPTIMIZERS:
        if name in (other.casefold() for other in NOT_MODELLED):
            raise InputError(
                f"optimizer.type: {given!r} is not modelled yet; modelled: {', '.join(OPTIMIZERS.values())}"
            )
        if name in REMOVED:
            raise InputError(
                f"optimizer.type: DeepSpeed has no {given!r} any more since {REMOVED_SINCE}; modelled: "
                f"{', '.join(OPTIMIZERS.values())}"
            )
        near = [CLASSES[name]] if name in CLASSES else nearest(given, (*OPTIMIZERS.values(), *NOT_MODELLED))
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise InputError(
            f"optimizer.type: DeepSpeed has no {given!r}; {hint}modelled: {', '.join(OPTIMIZERS.values())}"
        )
    for exact in _EXACT:
        if name == exact.casefold() and given != exact:
            raise InputError(f"optimizer.type: {given!r} must be spelled {exact}: DeepSpeed looks it up in torch.optim")
    return name
