"""Keys of older releases: those that DeepSpeed refuses today, and those that it still takes but has replaced.

The schema says which releases read a key that is gone (:mod:`dsplan.dsconfig.removed`); since when a key is deprecated
is the first tag of DeepSpeed's history whose ``runtime/zero/config.py`` or ``runtime/precision_config.py`` has its
successor.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from dsplan.check.configuration import ZERO, Configuration
from dsplan.check.finding import ERROR, WARNING, Edit, Finding, Rule
from dsplan.check.tree import find
from dsplan.dsconfig import DEEPSPEED_VERSION
from dsplan.dsconfig.removed import deprecated_keys, removed_keys

REMOVED = Rule(
    id="DS103", name="removed-key", severity=ERROR, summary=f"DeepSpeed {DEEPSPEED_VERSION} refuses the key."
)
DEPRECATED = Rule(
    id="DS104",
    name="deprecated-key",
    severity=WARNING,
    summary="The key still works, under protest; it has a successor.",
)
TWO_NAMES = Rule(
    id="DS105",
    name="two-names",
    severity=ERROR,
    summary="One setting is given under two names; DeepSpeed refuses both.",
)
RULES = (REMOVED, DEPRECATED, TWO_NAMES)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Old:
    """A key with a successor.

    Attributes:
        since: the release that deprecated it.
        successor: the key that DeepSpeed refuses beside it; empty when there is none.
        renamed: whether the successor takes the same value.
        effect: what else there is to say.
        unless: the value that asks for nothing.
    """

    since: str
    successor: str = ""
    renamed: bool = False
    effect: str = ""
    unless: object = None


_BOOLEAN_ZERO_SINCE = "0.2.0"
#: ``runtime/zero/config.py``: fields with ``"deprecated": True``; ``runtime/precision_config.py``.
_OLD = {
    f"{ZERO}.cpu_offload": _Old(since="0.3.15", successor="offload_optimizer"),
    f"{ZERO}.cpu_offload_param": _Old(since="0.3.15", successor="offload_param"),
    f"{ZERO}.cpu_offload_use_pin_memory": _Old(
        since="0.3.15",
        effect=" and has no effect: DeepSpeed passes it on to nothing",
    ),
    f"{ZERO}.stage3_gather_fp16_weights_on_model_save": _Old(
        since="0.6.0",
        successor="stage3_gather_16bit_weights_on_model_save",
        renamed=True,
    ),
    f"{ZERO}.elastic_checkpoint": _Old(since="0.19.3", effect=": stage 3 does not have it, and warns", unless=False),
    "allgather_size": _Old(
        since=_BOOLEAN_ZERO_SINCE,
        effect=": DeepSpeed reads it only beside a truth value for zero_optimization",
    ),
    "bfloat16": _Old(since="0.6.0", successor="bf16", renamed=True),
}
_NO_OLD_STAGE1_SINCE = "0.5.9"


def removed(config: Configuration) -> Iterator[Finding]:
    """Keys that DeepSpeed took once.

    Source: ``runtime/config.py`` (``_reject_removed_config_keys``); ``runtime/engine.py``
    (``_configure_basic_optimizer`` for max_grad_norm, ``_configure_zero_optimizer`` for legacy_stage1).
    """
    for path, key in removed_keys().items():
        if key.refused is not None and config.has(path):
            message = f"every release of DeepSpeed refuses {path}"
            if key.last is not None:
                message = f"DeepSpeed refuses {path} since {key.refused}; {key.last} was the last release to read it"
            yield config.finding(REMOVED, path, message, key.instead)
    path = f"{ZERO}.legacy_stage1"
    if config.get(path) is True:
        message = f"DeepSpeed stops at legacy_stage1: the old stage 1 is gone since {_NO_OLD_STAGE1_SINCE}"
        yield config.finding(REMOVED, path, message, "remove it")


def deprecated(config: Configuration) -> Iterator[Finding]:
    """Keys with a successor.

    Source: ``runtime/zero/config.py`` (``json_schema_extra={"deprecated": True, ...}``,
    ``read_zero_config_deprecated``), ``runtime/precision_config.py`` (``get_bfloat16_config``) and
    ``runtime/config_utils.py`` (``_process_deprecated_field``: both together are refused).
    """
    for path, old in _OLD.items():
        member = find(config.root, path)
        if member is None or config.get(path) == old.unless:
            continue
        section, _, key = path.rpartition(".")
        both = bool(old.successor) and config.has(f"{section}.{old.successor}" if section else old.successor)
        if both and key == "bfloat16":
            message = "bfloat16 is the old name of bf16, which is given too: DeepSpeed reads bf16 only"
            yield config.finding(DEPRECATED, path, message, "remove bfloat16", member=member)
        elif both:
            message = f"{key} is deprecated since {old.since} for {old.successor}; DeepSpeed refuses both together"
            yield config.finding(TWO_NAMES, path, message, f"remove {key}", member=member)
        else:
            message = f"{key} is deprecated since {old.since}{old.effect}"
            edit = Edit(offset=member.offset, end=member.end, text=f'"{old.successor}"') if old.renamed else None
            yield config.finding(DEPRECATED, path, message, deprecated_keys()[path], member=member, edit=edit)
    enabled = config.get(ZERO)
    if isinstance(enabled, bool):
        stage = int(enabled)
        message = f"a truth value for {ZERO} is deprecated since {_BOOLEAN_ZERO_SINCE}; DeepSpeed reads stage {stage}"
        yield config.finding(DEPRECATED, ZERO, message, f'{{"stage": {stage}}}', on_value=True)


def two_names(config: Configuration) -> Iterator[Finding]:
    """Stage-3 keys with and without prefix: alias and name of one pydantic field (``runtime/zero/config.py``)."""
    section = config.section(ZERO)
    for key in section:
        if f"stage3_{key}" in section:
            message = f"{key} and stage3_{key} are one setting; DeepSpeed refuses both together"
            yield config.finding(TWO_NAMES, f"{ZERO}.{key}", message, f"remove {key}")


CHECKS = (removed, deprecated, two_names)
