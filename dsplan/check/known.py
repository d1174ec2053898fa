"""What the schema knows about every key of a configuration.

The schema describes what DeepSpeed reads; jsonschema, which takes 100 ms to import, is not needed to walk it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from dsplan.check.configuration import Configuration
from dsplan.check.more_keys import MORE_KEYS
from dsplan.check.tree import Items, Member, Node, Section
from dsplan.schemas import schema

_NAME = "deepspeed_config"
TOP = ""

#: Sections that pydantic reads: it refuses unknown keys and converts what it can
#: (``runtime/config_utils.py``, ``DeepSpeedConfigModel``: extra="forbid"). The others are read with
#: ``dict.get``, which ignores what it does not know and converts nothing.
_PYDANTIC = (
    "zero_optimization",
    "fp16",
    "bf16",
    "bfloat16",
    "comms_logger",
    "tensorboard",
    "csv_monitor",
    "wandb",
    "comet",
    "timers.throughput",
    "compile",
    "hybrid_engine",
    "tensor_parallel",
)
#: Arguments of a constructor, which refuses an unknown one.
_ARGUMENTS = ("optimizer.params", "scheduler.params")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One key: its dotted path, the section it stands in (dotted, empty at the top), and its schema or None."""

    path: str
    section: str
    member: Member
    rules: Mapping[str, Any] | None


def is_pydantic(section: str) -> bool:
    """Whether DeepSpeed reads the section with pydantic."""
    return any(section == name or section.startswith(f"{name}.") for name in _PYDANTIC)


def is_arguments(section: str) -> bool:
    """Whether the keys of the section are arguments of a constructor, which DeepSpeed calls late."""
    return section in _ARGUMENTS


def refuses_unknown(section: str) -> bool:
    """Whether DeepSpeed stops at an unknown key of the section, rather than ignore it."""
    return is_pydantic(section) or is_arguments(section)


def places(config: Configuration) -> Iterator[Place]:
    """Every key of the configuration with what the schema says about it."""
    yield from _places(config.root, TOP, _resolved(schema(_NAME)), config)


def known_keys(section: str, config: Configuration | None = None) -> Mapping[str, Any]:
    """The keys of a section and their schemas; empty for a section that takes any key."""
    rules: Mapping[str, Any] | None = _resolved(schema(_NAME))
    path = ""
    for key in section.split(".") if section else []:
        properties = _keys(path, rules or {}, config)
        rules = _resolved(properties[key]) if properties and key in properties else None
        path = _join(path, key)
    return _keys(section, rules or {}, config) or {}


@cache
def homes() -> Mapping[str, tuple[str, ...]]:
    """Every key and the sections that it may stand in."""
    found: dict[str, list[str]] = {}
    _homes(TOP, _resolved(schema(_NAME)), found)
    return {key: tuple(sections) for key, sections in found.items()}


def _homes(section: str, rules: Mapping[str, Any], found: dict[str, list[str]]) -> None:
    for key, below in (_keys(section, rules, None) or {}).items():
        found.setdefault(key, []).append(section)
        _homes(_join(section, key), _resolved(below), found)


def _places(node: Section, section: str, rules: Mapping[str, Any], config: Configuration) -> Iterator[Place]:
    keys = _keys(section, rules, config)
    for member in node.members:
        path = _join(section, member.key)
        if keys is None:
            continue  # a section that takes any key
        below = _resolved(keys[member.key]) if member.key in keys else None
        if below is None and section == "optimizer.params":
            continue  # what else an optimizer takes depends on the optimizer
        yield Place(path=path, section=section, member=member, rules=below)
        if below is not None:
            for inner in _sections(member.node):
                yield from _places(inner, path, below, config)


def _sections(node: Node) -> Iterator[Section]:
    if isinstance(node, Section):
        yield node
    elif isinstance(node, Items):
        yield from (item for item in node.items if isinstance(item, Section))


def _keys(section: str, rules: Mapping[str, Any], config: Configuration | None) -> Mapping[str, Any] | None:
    """The keys of a section; None where any key may stand."""
    if section == "scheduler.params":
        return None if config is None else _scheduler_params(config.get("scheduler.type"))
    if section == "optimizer.params":
        return rules.get("properties")
    found = dict(rules.get("properties", {}))
    found.update(MORE_KEYS.get(section, {}))
    return found or None


def _scheduler_params(name: object) -> Mapping[str, Any] | None:
    for case in schema(_NAME)["properties"]["scheduler"].get("allOf", ()):
        if case["if"]["properties"]["type"].get("const") == name:
            params = case["then"]["properties"]["params"]
            return params["properties"] if params.get("additionalProperties") is False else None
    return None


def required_params(name: object) -> tuple[str, ...]:
    """The arguments without which DeepSpeed cannot make the scheduler ``name``."""
    for case in schema(_NAME)["properties"]["scheduler"].get("allOf", ()):
        if case["if"]["properties"]["type"].get("const") == name:
            return tuple(case["then"]["properties"]["params"].get("required", ()))
    return ()


def scheduler_names() -> tuple[str, ...]:
    """The schedulers that the schema knows."""
    return tuple(schema(_NAME)["properties"]["scheduler"]["properties"]["type"]["enum"])


def _resolved(rules: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schema that a ``$ref`` points to; of alternatives the one with keys."""
    if "$ref" in rules:
        rules = schema(_NAME)["$defs"][rules["$ref"].rpartition("/")[2]]
    for option in rules.get("anyOf", ()):
        resolved = _resolved(option)
        if "properties" in resolved:
            return {**resolved, "anyOf": rules["anyOf"]}
    return rules


def _join(section: str, key: str) -> str:
    return f"{section}.{key}" if section else key
