"""Keys: unknown, misplaced, removed, renamed, or given under two names."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping

from dsplan.check.configuration import Configuration
from dsplan.check.finding import ERROR, WARNING, Edit, Finding, Rule
from dsplan.check.known import TOP, Place, homes, is_arguments, known_keys, places, refuses_unknown
from dsplan.check.tree import Member, Section
from dsplan.dsconfig import DEEPSPEED_VERSION
from dsplan.dsconfig.removed import REMOVED_KEYS

UNKNOWN = Rule(id="DS101", name="unknown-key", severity=ERROR, summary="DeepSpeed has no such key.")
MISPLACED = Rule(
    id="DS102", name="misplaced-key", severity=ERROR, summary="The key belongs in another section, where it is read."
)
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
RULES = (UNKNOWN, MISPLACED, REMOVED, DEPRECATED, TWO_NAMES)

#: How alike a key must be to be taken for a misspelling, where DeepSpeed would ignore it.
_MISSPELT = 0.75
_SIMILAR = 0.6
#: A key that many sections have says nothing about where it belongs.
_MOST_HOMES = 3

#: Names that were never DeepSpeed's, or are no longer, and what is meant.
_MEANT = {
    "cpu_offload_params": "offload_param",
    "cpu_offload_optimizer": "offload_optimizer",
    "offload_params": "offload_param",
    "zero": "zero_optimization",
    "zero_config": "zero_optimization",
    "mixed_precision": "bf16",
    "clip_grad": "gradient_clipping",
    "max_grad_norm": "gradient_clipping",
}

#: ``runtime/zero/config.py``: fields with ``"deprecated": True``, and what to write.
_SUCCESSORS = {
    "zero_optimization.cpu_offload": '"offload_optimizer": {"device": "cpu"}',
    "zero_optimization.cpu_offload_param": '"offload_param": {"device": "cpu"}',
    "zero_optimization.cpu_offload_use_pin_memory": '"pin_memory" in offload_optimizer or offload_param',
    "zero_optimization.stage3_gather_fp16_weights_on_model_save": '"stage3_gather_16bit_weights_on_model_save"',
    "bfloat16": '"bf16"',
}
_REPLACED_BY = {"cpu_offload": "offload_optimizer", "cpu_offload_param": "offload_param"}
_RENAMED = {
    "zero_optimization.stage3_gather_fp16_weights_on_model_save": "stage3_gather_16bit_weights_on_model_save",
    "bfloat16": "bf16",
}
_NO_EFFECT = ("zero_optimization.cpu_offload_use_pin_memory",)


def unknown(config: Configuration) -> Iterator[Finding]:
    """Unknown and misplaced keys.

    Source: ``runtime/config_utils.py`` (``DeepSpeedConfigModel``: extra="forbid") for the sections that
    pydantic reads; every other section is read with ``dict.get``, which ignores what it does not ask for.
    """
    for place in places(config):
        if place.rules is None and place.path not in REMOVED_KEYS:
            yield _unknown(config, place)


def _unknown(config: Configuration, place: Place) -> Finding:
    key = place.member.key
    refused = refuses_unknown(place.section)
    effect = "DeepSpeed refuses it here" if refused else "DeepSpeed ignores it without a word"
    if is_arguments(place.section):
        effect = f"DeepSpeed stops when it makes the {place.section.partition('.')[0]}"
    known = known_keys(place.section, config)
    meant, close = _MEANT.get(key), _closest(key, known, _MISSPELT)
    elsewhere = [home for home in homes().get(key, ()) if home != place.section]
    if meant in known:
        close = meant
    if close is None and 0 < len(elsewhere) <= _MOST_HOMES:
        where = " or ".join(home or "the top level" for home in elsewhere)
        return config.finding(
            MISPLACED, place.path, f"{key} does not belong in {place.section or 'the top level'}: {effect}",
            f"move it to {where}", member=place.member,
        )  # fmt: skip
    similar = close or (_closest(key, known, _SIMILAR) if refused else None)
    message = f"unknown key {key}{f' in {place.section}' if place.section else ''}: {effect}"
    if similar is None:
        severity = ERROR if refused else WARNING
        instead = f'"{meant}" at the top level' if meant and meant in known_keys(TOP, config) else "remove it"
        return config.finding(UNKNOWN, place.path, message, instead, severity=severity, member=place.member)
    safe = close is not None and meant is None and not config.has(_sibling(place.path, close))
    edit = _rename(place.member, close) if safe and close is not None else None
    return config.finding(UNKNOWN, place.path, message, f'"{similar}"', member=place.member, edit=edit)


def removed(config: Configuration) -> Iterator[Finding]:
    """Keys that DeepSpeed took once.

    Source: ``runtime/config.py`` (``_reject_removed_config_keys``); ``runtime/engine.py``
    (``_configure_basic_optimizer`` for max_grad_norm, ``_configure_zero_optimizer`` for legacy_stage1).
    """
    for path, instead in REMOVED_KEYS.items():
        if config.has(path):
            yield config.finding(REMOVED, path, f"DeepSpeed {DEEPSPEED_VERSION} refuses {path}", instead)
    if config.get("zero_optimization.legacy_stage1") is True:
        path = "zero_optimization.legacy_stage1"
        yield config.finding(REMOVED, path, "DeepSpeed stops at legacy_stage1: the old stage 1 is gone", "remove it")


def deprecated(config: Configuration) -> Iterator[Finding]:
    """Keys with a successor.

    Source: ``runtime/zero/config.py`` (``json_schema_extra={"deprecated": True, ...}``,
    ``read_zero_config_deprecated``), ``runtime/precision_config.py`` (``get_bfloat16_config``) and
    ``runtime/config_utils.py`` (``_process_deprecated_field``: both together are refused).
    """
    for path, instead in _SUCCESSORS.items():
        if not config.has(path):
            continue
        key = path.rpartition(".")[2]
        new = _REPLACED_BY.get(key) or _RENAMED.get(path)
        both = new is not None and config.has(_sibling(path, new))
        if both and key == "bfloat16":
            message = "bfloat16 is the old name of bf16, which is given too: DeepSpeed reads bf16 only"
            yield config.finding(DEPRECATED, path, message, "remove bfloat16")
        elif both:
            message = f"{key} is deprecated for {new}; DeepSpeed refuses both together"
            yield config.finding(TWO_NAMES, path, message, f"remove {key}")
        else:
            message = f"{key} is deprecated"
            if path in _NO_EFFECT:
                message += " and has no effect: DeepSpeed passes it on to nothing"
            member = _member(config, path)
            edit = _rename(member, _RENAMED[path]) if member is not None and path in _RENAMED else None
            yield config.finding(DEPRECATED, path, message, instead, edit=edit)
    if isinstance(config.get("zero_optimization"), bool):
        stage = int(config.get("zero_optimization"))
        message = f"a truth value for zero_optimization is deprecated; DeepSpeed reads stage {stage}"
        yield config.finding(DEPRECATED, "zero_optimization", message, f'{{"stage": {stage}}}', on_value=True)


def two_names(config: Configuration) -> Iterator[Finding]:
    """Stage-3 keys with and without prefix: alias and name of one pydantic field (``runtime/zero/config.py``)."""
    prefix = "stage3_"
    for key in config.section("zero_optimization"):
        if f"{prefix}{key}" in config.section("zero_optimization"):
            message = f"{key} and {prefix}{key} are one setting; DeepSpeed refuses both together"
            yield config.finding(TWO_NAMES, f"zero_optimization.{key}", message, f"remove {key}")


def _closest(key: str, known: Mapping[str, object], cutoff: float) -> str | None:
    names = {name.casefold(): name for name in known}
    found = difflib.get_close_matches(key.casefold(), names, n=1, cutoff=cutoff)
    return names[found[0]] if found else None


def _sibling(path: str, key: str) -> str:
    section = path.rpartition(".")[0]
    return f"{section}.{key}" if section else key


def _member(config: Configuration, path: str) -> Member | None:
    section, _, key = path.rpartition(".")
    if not section:
        return config.root.member(key)
    parent = config.root.member(section)
    return parent.node.member(key) if parent is not None and isinstance(parent.node, Section) else None


def _rename(member: Member, key: str) -> Edit:
    return Edit(offset=member.offset, end=member.end, text=f'"{key}"')


CHECKS = (unknown, removed, deprecated, two_names)
