"""Keys that DeepSpeed does not know, or not there."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator

from dsplan.check.configuration import Configuration
from dsplan.check.finding import ERROR, NOTE, WARNING, Edit, Finding, Rule
from dsplan.check.known import TOP, Place, homes, is_arguments, known_keys, places, refuses_unknown
from dsplan.check.tree import Member, Section
from dsplan.dsconfig.removed import RemovedKey, removed_keys
from dsplan.dsconfig.schema import COMMENTS

UNKNOWN = Rule(id="DS101", name="unknown-key", severity=ERROR, summary="DeepSpeed has no such key.")
MISPLACED = Rule(
    id="DS102", name="misplaced-key", severity=ERROR, summary="The key belongs in another section, where it is read."
)
RULES = (UNKNOWN, MISPLACED)

#: How alike a key must be to be taken for a misspelling, where DeepSpeed would ignore it.
MISSPELT = 0.75
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
    "comms_config": "comms_logger",
}
#: Keys whose end is known: what DeepSpeed's history says of them.
_HISTORY = {"cpu_offload_params": " since 0.7.0; it was deprecated in 0.3.15"}


def unknown(config: Configuration) -> Iterator[Finding]:
    """Unknown and misplaced keys.

    Source: ``runtime/config_utils.py`` (``DeepSpeedConfigModel``: extra="forbid") for the sections that
    pydantic reads; every other section is read with ``dict.get``, which ignores what it does not ask for.
    """
    for place in places(config):
        if place.rules is None:
            old = removed_keys().get(place.path)
            if old is None:
                yield _unknown(config, place)
            elif old.refused is None:
                yield _moved_on(config, place, old)


def _moved_on(config: Configuration, place: Place, old: RemovedKey) -> Finding:
    """A key that an older release read and today's ignores."""
    key, section = old.instead.rpartition(".")[2], old.instead.rpartition(".")[0]
    message = f"DeepSpeed ignores {place.path} without a word; {old.last} was the last release to read it"
    safe = section == place.section and not config.has(old.instead)
    edit = _rename(place.member, key) if safe else None
    return config.finding(UNKNOWN, place.path, message, f'"{key}"', severity=WARNING, member=place.member, edit=edit)


def _unknown(config: Configuration, place: Place) -> Finding:
    key = place.member.key
    refused = refuses_unknown(place.section)
    effect = f"DeepSpeed refuses it here{_HISTORY.get(key, '')}" if refused else "DeepSpeed ignores it without a word"
    if is_arguments(place.section):
        effect = f"DeepSpeed stops when it makes the {place.section.partition('.')[0]}"
    unread = f"unknown key {key}{f' in {place.section}' if place.section else ''}: {effect}"
    if key.startswith(COMMENTS):
        severity = ERROR if refused else NOTE
        return config.finding(UNKNOWN, place.path, unread, "remove it", severity=severity, member=place.member)
    known = known_keys(place.section, config)
    meant, close = _MEANT.get(key), closest(key, known, MISSPELT)
    elsewhere = [home for home in homes().get(key, ()) if home != place.section]
    if meant in known:
        close = meant
    if close is None and 0 < len(elsewhere) <= _MOST_HOMES:
        where = " or ".join(home or "the top level" for home in elsewhere)
        return config.finding(
            MISPLACED, place.path, f"{key} does not belong in {place.section or 'the top level'}: {effect}",
            f"move it to {where}", member=place.member,
        )  # fmt: skip
    similar = close or (closest(key, known, _SIMILAR) if refused else None)
    if similar is None:
        severity = ERROR if refused else WARNING
        instead = f'"{meant}" at the top level' if meant and meant in known_keys(TOP, config) else "remove it"
        inner = [each.key for each in _below(place.member) if each.key in known]
        if inner:
            instead = f"move {', '.join(inner)} out of it"
        return config.finding(UNKNOWN, place.path, unread, instead, severity=severity, member=place.member)
    safe = close is not None and meant is None and not config.has(_sibling(place.path, close))
    edit = _rename(place.member, close) if safe and close is not None else None
    return config.finding(UNKNOWN, place.path, unread, f'"{similar}"', member=place.member, edit=edit)


def _below(member: Member) -> tuple[Member, ...]:
    return member.node.members if isinstance(member.node, Section) else ()


def closest(key: str, known: Iterable[str], cutoff: float) -> str | None:
    """The name in ``known`` that is most like ``key``, whatever the case; None when none is as alike as ``cutoff``."""
    names = {name.casefold(): name for name in known}
    found = difflib.get_close_matches(key.casefold(), names, n=1, cutoff=cutoff)
    return names[found[0]] if found else None


def _sibling(path: str, key: str) -> str:
    section = path.rpartition(".")[0]
    return f"{section}.{key}" if section else key


def _rename(member: Member, key: str) -> Edit:
    return Edit(offset=member.offset, end=member.end, text=f'"{key}"')


CHECKS = (unknown,)
