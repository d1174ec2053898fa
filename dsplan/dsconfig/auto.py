"""The values ``"auto"``, which only Hugging Face's integrations fill in.

DeepSpeed itself drops ``"auto"`` in its pydantic sections, so that ``"fp16": {"enabled": "auto"}``
trains in fp32 (``runtime/config_utils.py``, ``DeepSpeedConfigModel.__init__``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from dsplan.errors import InputError

#: Keys where DeepSpeed itself knows the word.
_OWN_MEANING = frozenset(
    {
        "data_types.keep_in_fp32_modules",
        "pipeline.stages",
        "expert_parallel.score_apply",
        "expert_parallel.combine_impl",
        "expert_parallel.row_weighting_impl",
    }
)


def auto_keys(document: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Dotted names of the keys whose value is ``"auto"`` and that DeepSpeed cannot resolve."""
    return list(_auto_keys(document, prefix))


def require_no_auto(document: Mapping[str, Any]) -> None:
    """Raise InputError naming every ``"auto"`` in ``document``."""
    keys = auto_keys(document)
    if keys:
        raise InputError(
            f'"auto" in {", ".join(keys)}: only Hugging Face\'s Trainer and accelerate resolve it, from arguments that '
            "are not in this file; give the value"
        )


def _auto_keys(section: Mapping[str, Any], prefix: str) -> Iterator[str]:
    for key, value in section.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _auto_keys(value, f"{name}.")
        elif value == "auto" and name not in _OWN_MEANING:
            yield name
