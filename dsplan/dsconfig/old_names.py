"""Deprecated keys of a configuration, and their present names.

Source: DeepSpeed ``runtime/zero/config.py`` (fields with ``"deprecated": True``, ``read_zero_config_deprecated``) and
``runtime/precision_config.py`` (``get_bfloat16_config``).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from dsplan.dsconfig.edit import drop_key, rename_key, value_at

_ZERO = "zero_optimization"
_CPU = {True: {"device": "cpu"}, False: {"device": "none"}}
#: Deprecated key of ZeRO -> its present name, and the value there of each old value; None: the same value.
_RENAMED: dict[str, tuple[str, dict[bool, Any] | None]] = {
    "cpu_offload": ("offload_optimizer", _CPU),
    "cpu_offload_param": ("offload_param", _CPU),
    "stage3_gather_fp16_weights_on_model_save": ("stage3_gather_16bit_weights_on_model_save", None),
}

#: (key, value before, value after or None where it goes, why)
Rename = tuple[str, Any, Any, str]


def renames(document: dict[str, Any]) -> Iterator[Rename]:
    """Give the deprecated keys of ``document`` their present names, in place, and tell each."""
    enabled = document.get(_ZERO)
    if isinstance(enabled, bool):
        section: dict[str, Any] = {"stage": int(enabled)}
        if enabled and "allgather_size" in document:
            section["allgather_bucket_size"] = document["allgather_size"]
        document[_ZERO] = section
        yield _ZERO, enabled, section, f"a truth value is deprecated; it means stage {int(enabled)}"
    if "bfloat16" in document:
        old = document["bfloat16"]
        if document.get("bf16") is None:
            document.pop("bf16", None)
            _replace(document, rename_key(document, "bfloat16", "bf16", old))
            yield "bfloat16", old, {"bf16": old}, "the old name of bf16"
        else:
            drop_key(document, "bfloat16")
            yield "bfloat16", old, None, "the old name of bf16, which is given too and stands"
    for name, (new, values) in _RENAMED.items():
        key = f"{_ZERO}.{name}"
        old = value_at(document, key)
        if old is None:
            drop_key(document, key)
            continue
        value = old if values is None else values[old]
        rename_key(document, key, f"{_ZERO}.{new}", value)
        yield key, old, {new: value}, f"deprecated; its present name is {new}"
    key = f"{_ZERO}.cpu_offload_use_pin_memory"
    if value_at(document, key) is not None:
        yield key, value_at(document, key), None, "deprecated, and without effect: pin_memory of the section says it"
        drop_key(document, key)


def _replace(document: dict[str, Any], changed: dict[str, Any]) -> None:
    document.clear()
    document.update(changed)
