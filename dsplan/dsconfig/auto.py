"""The values ``"auto"``, which only Hugging Face's integrations fill in.

DeepSpeed itself drops ``"auto"`` in its pydantic sections, so that ``"fp16": {"enabled": "auto"}``
trains in fp32 (``runtime/config_utils.py``, ``DeepSpeedConfigModel.__init__``).
:mod:`dsplan.dsconfig.resolve` fills it in as they do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from dsplan.errors import InputError

AUTO = "auto"

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
#: Sections in which it is a value like any other (``zenflow_config.py``).
_OWN_SECTIONS = ("zero_optimization.zenflow.",)


def auto_keys(document: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Dotted names of the keys whose value is ``"auto"`` and that DeepSpeed cannot resolve."""
    return [
        key for key in every_auto(document, prefix) if key not in _OWN_MEANING and not key.startswith(_OWN_SECTIONS)
    ]


def every_auto(document: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Dotted names of all keys whose value is ``"auto"``, DeepSpeed's own words among them."""
    return list(_every_auto(document, prefix))


def require_no_auto(document: Mapping[str, Any]) -> None:
    """Raise InputError naming every ``"auto"`` in ``document``."""
    keys = auto_keys(document)
    if keys:
        raise InputError(
            f'"auto" in {", ".join(keys)}: only Hugging Face\'s Trainer and accelerate resolve it, from arguments '
            "that are not in this file; give the value, or say with --for (hf, accelerate) which of them reads the file"
        )


def _every_auto(section: Mapping[str, Any], prefix: str) -> Iterator[str]:
    for key, value in section.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _every_auto(value, f"{name}.")
        elif value == AUTO:
            yield name
