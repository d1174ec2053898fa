"""The precision that the ``fp16``, ``bf16`` and ``data_types`` sections ask for.

Source: DeepSpeed ``runtime/precision_config.py``, ``runtime/config.py`` (both enabled) and
``runtime/engine.py`` (``_assert_valid_mixed_precision_config``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dsplan.dsconfig.not_modelled import GRAD_ACCUM_DTYPE, lookup, precision_named, same_dtype
from dsplan.errors import InputError


def precision_of(document: Mapping[str, Any]) -> str:
    """``fp32``, ``fp16`` or ``bf16``.

    Raises:
        InputError: fp16 and bf16 are both enabled, or data_types.param_dtype contradicts them.
    """
    fp16 = lookup(document, "fp16.enabled")[0]
    bf16 = lookup(document, "bf16.enabled")[0]
    if fp16 and bf16:
        raise InputError("fp16.enabled, bf16.enabled: DeepSpeed refuses both together; set one of them to false")
    precision = "fp16" if fp16 else "bf16" if bf16 else "fp32"
    dtype = lookup(document, "data_types.param_dtype")[0]
    if dtype is not None and not same_dtype(dtype, precision):
        raise InputError(
            f"data_types.param_dtype: {dtype!r} is not allowed; the fp16 and bf16 sections ask for {precision}"
        )
    return precision


def gradient_dtypes(document: Mapping[str, Any]) -> dict[str, str | None]:
    """``grad_accum_dtype`` and ``communication_data_type`` of a workload; None where the file has none."""
    given = {
        "grad_accum_dtype": lookup(document, GRAD_ACCUM_DTYPE)[0],
        "communication_data_type": lookup(document, "communication_data_type")[0],
    }
    return {field: None if value is None else precision_named(value) for field, value in given.items()}


def with_current_names(document: Mapping[str, Any]) -> dict[str, Any]:
    """``document`` with the old name ``bfloat16`` spelled ``bf16``, as ``get_bfloat16_config`` does."""
    current = dict(document)
    old = current.pop("bfloat16", {})
    if current.get("bf16") is None:
        # DeepSpeed reads the old name only when the new one is absent.
        current["bf16"] = old
    return current
