"""A configuration for 0.19.8, said to another DeepSpeed release so that it means the same there.

What a release knows stands in the schema (``x-since``, ``x-names``, ``x-defaults``, ``x-before``, ``x-values``,
``x-removed-keys``); it was taken from the parsers of every release from 0.9.0 on. Here is what follows from it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

from dsplan.dsconfig import DEEPSPEED_VERSION
from dsplan.dsconfig.not_modelled import lookup, same_dtype
from dsplan.dsconfig.removed import removed_keys, require_not_removed
from dsplan.dsconfig.schema_keys import TOP, every_key, join, keys_of, resolved, root, rules_of
from dsplan.errors import InputError, nearest

Version = tuple[int, int, int]
Action = Literal["dropped", "renamed", "written", "refused"]

#: steps_per_print for a release that cannot be told to print never (it divides by the number).
NEVER = 1_000_000_000
_OFFLOAD = "zero_optimization.offload_optimizer.device"
_OLDEST = "0.0.0"
_PRECISIONS = {"fp16": ("fp16",), "bf16": ("bf16", "bfloat16")}


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionChange:
    """One thing that another release needs said differently.

    Attributes:
        key: dotted, as 0.19.8 names it.
        action: ``dropped``: the release does not know the key, and does so anyhow, or nearly so (``reason`` says
            what differs); ``renamed``: it has another name for the key or the value; ``written``: its default is
            another, so that the value stands in the file; ``refused``: it cannot do what is asked.
        reason: why, in a few words.
    """

    key: str
    action: Action
    reason: str


def supported_versions() -> tuple[str, ...]:
    """Every DeepSpeed release that the schema knows, oldest first."""
    return tuple(root()["x-releases"])


def parse_version(text: str) -> Version:
    """``"0.16.4"`` (also ``"v0.16.4"`` and ``"0.16.4+cu121"``) as numbers.

    Raises:
        InputError: it is no release that :func:`supported_versions` lists.
    """
    plain = text.strip().removeprefix("v").partition("+")[0]
    releases = supported_versions()
    if plain not in releases:
        near = _beyond(plain, releases) or nearest(plain, releases, limit=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise InputError(
            f"deepspeed-version: {text!r} is not allowed; it must be a release from {releases[0]} to "
            f"{releases[-1]}{hint}"
        )
    return _numbers(plain)


def _beyond(plain: str, releases: tuple[str, ...]) -> list[str]:
    """Of a release before or after all: the end of the list, not the one that is spelled most alike."""
    if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})*", plain) is None:
        return []
    given = tuple(int(part) for part in plain.split("."))
    if given > _numbers(releases[-1]):
        return [releases[-1]]
    return [releases[0]] if given < _numbers(releases[0]) else []


def knows(key: str, version: str) -> bool:
    """Whether the parser of ``version`` reads the dotted ``key`` under this name.

    Keys whose name is free (the metrics of a curriculum, modules to quantize) are known where their section is.

    Raises:
        InputError: ``version`` is no release that we know.
    """
    target = parse_version(version)
    old = removed_keys().get(key)
    if old is not None:
        return old.last is not None and _numbers(old.since or _OLDEST) <= target <= _numbers(old.last)
    path = ""
    for part in key.split("."):
        path = join(path, part)
        if path in _since_by_path() and _since_by_path()[path] > target:
            return False
    return key in _since_by_path() or _free(key)


def allows(key: str, value: str, version: str) -> bool:
    """Whether ``value`` exists for ``key`` in ``version``, e.g. ``("scheduler.type", "WarmupCosineLR", "0.11.1")``.

    Raises:
        InputError: ``version`` is no release that we know.
    """
    entry = _value_rules(rules_of(key) or {}, value)
    return _numbers(entry.get("x-since", _OLDEST)) <= parse_version(version)


def for_version(document: Mapping[str, Any], version: str) -> tuple[dict[str, Any], tuple[VersionChange, ...]]:
    """``document``, which says what it means on 0.19.8, so that it means the same on ``version``.

    Keys get the names of that release; keys that it does not know go where they hold what it does anyhow; and what
    the document leaves to a default that was another then is written.

    Returns:
        The new document and what was changed, in the order of the keys, defaults last; no change for 0.19.8 itself.

    Raises:
        InputError: ``version`` is no release that we know; the document holds a key that 0.19.8 refuses; or the
            release cannot do what a key asks for. The message names every such key.
    """
    result, changes = _converted(document, version)
    refused = [f"{change.key}: {change.reason}" for change in changes if change.action == "refused"]
    if refused:
        raise InputError("; ".join(refused))
    return result, changes


def version_changes(document: Mapping[str, Any], version: str) -> tuple[VersionChange, ...]:
    """What :func:`for_version` would change, with what it would refuse.

    Raises:
        InputError: ``version`` is no release that we know, or the document holds a key that 0.19.8 refuses.
    """
    return _converted(document, version)[1]


def _converted(document: Mapping[str, Any], version: str) -> tuple[dict[str, Any], tuple[VersionChange, ...]]:
    target = parse_version(version)
    require_not_removed(document)
    if target == _numbers(DEEPSPEED_VERSION):
        return deepcopy(dict(document)), ()
    run = _Run(document=document, version=".".join(map(str, target)), target=target)
    result = run.section(document, TOP, root())
    for path, rules in _changed_defaults():
        run.write_default(result, path, rules)
        if run.differs(path, rules):
            run.say(path, "dropped", f"new in {rules['x-since']}; {rules['x-difference']}")
    return result, tuple(run.changes)


@cache
def _changed_defaults() -> tuple[tuple[str, Mapping[str, Any]], ...]:
    """The keys that older releases took otherwise when they were not given."""
    return tuple((path, rules) for path, rules in every_key() if rules.keys() & {"x-defaults", "x-difference"})


@dataclass(kw_only=True)
class _Run:
    """One document on its way to one release."""

    document: Mapping[str, Any]
    version: str
    target: Version
    changes: list[VersionChange] = field(default_factory=list)

    def section(self, section: Mapping[str, Any], path: str, rules: Mapping[str, Any]) -> dict[str, Any]:
        keys = keys_of(path, rules, self._get("scheduler.type"))
        any_key, made = rules.get("additionalProperties"), {}
        for key, value in section.items():
            found = (keys or {}).get(key, any_key)
            if not isinstance(found, Mapping):
                made[key] = deepcopy(value)
                continue
            below, full = resolved(found), join(path, key)
            name = _name(below, self.target)
            if name is not None:
                self.say(full, "renamed", f"DeepSpeed {self.version} calls it {name}")
            elif _since(below) > self.target and not self._unless(below):
                self._unknown(full, value, below)
                continue
            made[name or key] = self._value(full, value, below)
        return made

    def _value(self, path: str, value: Any, rules: Mapping[str, Any]) -> Any:
        if isinstance(value, Mapping):
            return self.section(value, path, rules)
        if isinstance(value, list):
            items = resolved(rules.get("items", {}))
            return [self._value(path, item, items) for item in value]
        if not isinstance(value, str):
            return value
        self._check_value(path, value, rules)
        for spelling in rules.get("x-value-names", {}).get(value.lower(), ()):
            if self.target <= _numbers(spelling["until"]):
                self.say(path, "renamed", f"DeepSpeed {self.version} spells {value} {spelling['name']}")
                return spelling["name"]
        return value

    def _check_value(self, path: str, value: str, rules: Mapping[str, Any]) -> None:
        """Optimizers, schedulers and passes that came later than their key."""
        entry = _value_rules(rules, value)
        if not entry or self._unless(entry):
            return
        since = entry.get("x-since", _OLDEST)
        if self.target < _numbers(since):
            self.say(path, "refused", f"{value} needs DeepSpeed {since}; {self.version} does not have it")
        elif self._get("zero_optimization.stage") == 3 and self.target < _numbers(entry.get("x-since-stage3", since)):
            needed = entry["x-since-stage3"]
            self.say(path, "refused", f"{value} with stage 3 needs DeepSpeed {needed}; {self.version} refuses it")

    def _unknown(self, path: str, value: Any, rules: Mapping[str, Any]) -> None:
        """A key that the release does not know: dropped where that changes nothing."""
        since = rules["x-since"]
        asks = self._asks(path, value, rules)
        if asks is not None:
            key, wanted = asks
            since = (rules_of(key) or rules).get("x-since", since)
            self.say(key, "refused", f"{_show(wanted)} needs DeepSpeed {since}; {self.version} cannot do it")
        elif not self.differs(path, rules):
            self.say(path, "dropped", f"new in {since}, and {self.version} does what {_show(value)} says")

    def _asks(self, path: str, value: Any, rules: Mapping[str, Any]) -> tuple[str, Any] | None:
        """The key and value for which a release without ``path`` does something else; None when it does the same."""
        if self._same_anyhow(path, value) or ("default" in rules and _same(value, rules["default"])):
            return None
        properties = rules.get("properties")
        if not properties or not isinstance(value, Mapping) or rules.get("default", value) is None:
            before = rules.get("x-before", [])
            return None if any(_same(value, option) for option in before) else (path, value)
        if _off(value, properties):
            return None
        asked = (
            self._asks(join(path, key), inner, resolved(properties[key]) if key in properties else {})
            for key, inner in value.items()
        )
        return next((found for found in asked if found is not None), None)

    def _same_anyhow(self, path: str, value: Any) -> bool:
        """Dtypes that follow from the precision: param_dtype has to, and older releases cast every buffer to it."""
        if path == "data_types.buffer_dtype" and value is not None:
            return same_dtype(value, self._precision())
        return path == "data_types.param_dtype" or (
            path == "data_types.keep_in_fp32_modules" and self._precision() == "fp32"
        )

    def differs(self, path: str, rules: Mapping[str, Any]) -> bool:
        """Whether the release does something else than the default of ``path``, and has no key to change it."""
        if "x-difference" not in rules or _since(rules) <= self.target:
            return False
        value, given = lookup(self.document, path)
        if given and not _same(value, rules["default"]):
            return False
        if path.startswith("data_types."):
            return self._precision() != "fp32"
        return bool(self._get("zero_optimization.stage") == 3)

    def write_default(self, result: dict[str, Any], path: str, rules: Mapping[str, Any]) -> None:
        """Write what 0.19.8 takes for a key that is not given, where the release would take something else."""
        old = next((e for e in rules.get("x-defaults", ()) if self.target <= _numbers(e["until"])), None)
        if old is None or _since(rules) > self.target:
            return
        value = self._get(path)
        section, _, key = path.rpartition(".")
        if _same(old["default"], rules["default"]) or value is not None:
            return
        if section == "scheduler.params" and self._get("scheduler.type") != "WarmupLR":
            return
        place = lookup(result, section)[0] if section else result
        properties = (rules_of(section, self._get("scheduler.type")) or {}).get("properties", {}) if section else {}
        if not isinstance(place, dict) or _off(place, properties):
            return
        new = self._default(path, rules)
        if new is None:
            took = _show(old["default"])
            self.say(path, "refused", f"absent, it is the optimizer's lr, and {self.version} takes {took}; give it")
            return
        place[key] = new
        self.say(path, "written", f"{self.version} would take {_show(old['default'])} in its place")

    def _default(self, path: str, rules: Mapping[str, Any]) -> Any:
        if path == "steps_per_print":
            return NEVER
        if path == "scheduler.params.warmup_max_lr":
            return self._get("optimizer.params.lr")
        return rules["default"]

    def _precision(self) -> str:
        for name, sections in _PRECISIONS.items():
            if any(self._get(f"{section}.enabled") is True for section in sections):
                return name
        return "fp32"

    def _unless(self, rules: Mapping[str, Any]) -> bool:
        """Whether the setting is older where the optimizer is offloaded (``x-unless``)."""
        return rules.get("x-unless") == "offload_optimizer" and self._get(_OFFLOAD) in ("cpu", "nvme")

    def _get(self, path: str) -> Any:
        return lookup(self.document, path)[0]

    def say(self, key: str, action: Action, reason: str) -> None:
        self.changes.append(VersionChange(key=key, action=action, reason=reason))


@cache
def _since_by_path() -> Mapping[str, Version]:
    """Every dotted key and the first release that knows it, of an argument of several schedulers for any of them."""
    found: dict[str, Version] = {}
    for path, rules in every_key():
        found[path] = min(_since(rules), found.get(path, _since(rules)))
    return found


def _free(key: str) -> bool:
    """Whether a key stands in a section that takes any key."""
    section = key.rpartition(".")[0]
    while section:
        rules = rules_of(section)
        if rules is not None:
            return section in ("optimizer.params", "scheduler.params") or not rules.get("properties")
        section = section.rpartition(".")[0]
    return False


def _value_rules(rules: Mapping[str, Any], value: str) -> Mapping[str, Any]:
    entries: Mapping[str, Mapping[str, Any]] = rules.get("x-values", {})
    return entries.get(value) or entries.get(value.lower()) or {}


def _name(rules: Mapping[str, Any], target: Version) -> str | None:
    """What a release calls the key, where that is not today's name."""
    for entry in rules.get("x-names", ()):
        if _numbers(entry.get("since", _OLDEST)) <= target <= _numbers(entry["until"]):
            return str(entry["name"])
    return None


def _since(rules: Mapping[str, Any]) -> Version:
    return _numbers(rules.get("x-since", _OLDEST))


def _off(section: Mapping[str, Any], properties: Mapping[str, Any]) -> bool:
    """Whether a section with a switch is switched off."""
    if "enabled" in properties:
        return section.get("enabled", resolved(properties["enabled"]).get("default")) is False
    return "device" in properties and section.get("device", "none") in ("none", None)


def _same(one: Any, other: Any) -> bool:
    """Equality that tells true from 1."""
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)


def _numbers(text: str) -> Version:
    major, minor, patch = (int(part) for part in text.split("."))
    return major, minor, patch


def _show(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
