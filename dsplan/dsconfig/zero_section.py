"""``zero_optimization`` as a :class:`ZeroConfig`.

Source: DeepSpeed ``runtime/zero/config.py`` and ``runtime/config_utils.py`` (aliases and deprecated
keys). The section has passed the schema and :mod:`dsplan.dsconfig.not_modelled`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from dsplan.errors import InputError
from dsplan.zero import LeafModule, OffloadOptimizer, OffloadParam, ZeroConfig

_PREFIX = "stage3_"
_SECTIONS = ("offload_optimizer", "offload_param", "leaf_module")
_DEPRECATED = {"cpu_offload": "offload_optimizer", "cpu_offload_param": "offload_param"}


def zero_config(document: Mapping[str, Any]) -> ZeroConfig:
    """The ZeRO section of ``document``, with DeepSpeed's defaults; stage 0 when there is none.

    Raises:
        InputError: a key is given under both of its names, a deprecated key together with its
            replacement, nvme without a path, or a combination that :class:`ZeroConfig` refuses.
    """
    section = document.get("zero_optimization", {})
    if isinstance(section, bool):
        section = _boolean_section(section, document)
    values = _one_name_each(_without_deprecated(section))
    plain = {
        field.name: _number(values[field.name])
        for field in fields(ZeroConfig)
        if field.name in values and field.name not in _SECTIONS
    }
    return ZeroConfig(
        **plain,
        offload_optimizer=OffloadOptimizer(**_offload("offload_optimizer", values, OffloadOptimizer)),
        offload_param=OffloadParam(**_offload("offload_param", values, OffloadParam)),
        leaf_module=_leaf_module(values.get("leaf_module") or {}),
    )


def _leaf_module(section: Mapping[str, Any]) -> LeafModule:
    """A string is a list of one (``DeepSpeedZeroLeafModuleConfig._coerce_container_types``)."""
    given = {key: (value,) if isinstance(value, str) else tuple(value) for key, value in section.items()}
    return LeafModule(**given)


def _boolean_section(enabled: bool, document: Mapping[str, Any]) -> dict[str, Any]:
    """``"zero_optimization": true`` is stage 1 (``read_zero_config_deprecated``)."""
    if not enabled:
        return {"stage": 0}
    return {"stage": 1, "allgather_bucket_size": document.get("allgather_size", 500_000_000)}


def _without_deprecated(section: Mapping[str, Any]) -> dict[str, Any]:
    values = dict(section)
    for old, new in _DEPRECATED.items():
        if old not in values:
            continue
        if new in values:
            raise InputError(f"zero_optimization.{old}: is deprecated for {new}; DeepSpeed refuses both together")
        values[new] = {"device": "cpu"} if values.pop(old) else None
    return values


def _one_name_each(values: Mapping[str, Any]) -> dict[str, Any]:
    """Stage-3 keys under ZeroConfig's names, which carry the prefix."""
    named = {field.name for field in fields(ZeroConfig)}
    result = dict(values)
    for name in values:
        prefixed = _PREFIX + name
        if prefixed in values:
            raise InputError(
                f"zero_optimization.{name}: is the same key as {prefixed}; DeepSpeed refuses both together"
            )
        if prefixed in named:
            result[prefixed] = result.pop(name)
    return result


def _offload(name: str, values: Mapping[str, Any], kind: type[OffloadOptimizer] | type[OffloadParam]) -> dict[str, Any]:
    section = values.get(name) or {}
    known = {field.name for field in fields(kind)}
    if section.get("device") == "nvme" and not section.get("nvme_path"):
        raise InputError(f'zero_optimization.{name}.nvme_path: is missing; device "nvme" needs a folder on the drive')
    return {key: _number(value) for key, value in section.items() if key in known}


def _number(value: Any) -> Any:
    """JSON's ``5e8`` is a float; DeepSpeed takes it for the whole number it is. Ratios keep their fraction."""
    return int(value) if isinstance(value, float) and value.is_integer() else value
