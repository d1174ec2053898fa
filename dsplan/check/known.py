"""What the schema knows about every key of a configuration."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from dsplan.check.configuration import Configuration
from dsplan.check.tree import Items, Member, Node, Section
from dsplan.dsconfig.schema_keys import TOP, join, keys_of, resolved, root, scheduler_branch

__all__ = [
    "TOP",
    "Place",
    "homes",
    "is_arguments",
    "is_pydantic",
    "known_keys",
    "places",
    "refuses_unknown",
    "required_params",
    "scheduler_names",
]

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
    "weight_quantization",
)
#: A dictionary within such a section, which AutoTP reads with ``dict.get`` (``module_inject/autotp_config.py``).
_PLAIN = ("tensor_parallel.partition_config",)
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
    return _within(section, _PYDANTIC) and not _within(section, _PLAIN)


def _within(section: str, names: tuple[str, ...]) -> bool:
    return any(section == name or section.startswith(f"{name}.") for name in names)


def is_arguments(section: str) -> bool:
    """Whether the keys of the section are arguments of a constructor, which DeepSpeed calls late."""
    return section in _ARGUMENTS


def refuses_unknown(section: str) -> bool:
    """Whether DeepSpeed stops at an unknown key of the section, rather than ignore it."""
    return is_pydantic(section) or is_arguments(section)


def places(config: Configuration) -> Iterator[Place]:
    """Every key of the configuration with what the schema says about it."""
    yield from _places(config.root, TOP, root(), config)


def known_keys(section: str, config: Configuration | None = None) -> Mapping[str, Any]:
    """The keys of a section and their schemas; empty for a section that takes any key."""
    rules: Mapping[str, Any] | None = root()
    path = TOP
    for key in section.split(".") if section else []:
        properties = _keys(path, rules or {}, config)
        rules = resolved(properties[key]) if properties and key in properties else None
        path = join(path, key)
    return _keys(section, rules or {}, config) or {}


@cache
def homes() -> Mapping[str, tuple[str, ...]]:
    """Every key and the sections that it may stand in."""
    found: dict[str, list[str]] = {}
    _homes(TOP, root(), found)
    return {key: tuple(sections) for key, sections in found.items()}


def _homes(section: str, rules: Mapping[str, Any], found: dict[str, list[str]]) -> None:
    for key, below in (_keys(section, rules, None) or {}).items():
        found.setdefault(key, []).append(section)
        _homes(join(section, key), resolved(below), found)


def _places(node: Section, section: str, rules: Mapping[str, Any], config: Configuration) -> Iterator[Place]:
    keys, any_key = _keys(section, rules, config), rules.get("additionalProperties")
    for member in node.members:
        path = join(section, member.key)
        if keys is None and not isinstance(any_key, Mapping):
            continue  # a section that takes any key
        found = any_key if keys is None else keys.get(member.key)
        below = None if found is None else resolved(found)
        if below is None and section == "optimizer.params":
            continue  # what else an optimizer takes depends on the optimizer
        yield Place(path=path, section=section, member=member, rules=below)
        if below is not None:
            for inner, inner_rules in _sections(member.node, below):
                yield from _places(inner, path, inner_rules, config)


def _sections(node: Node, rules: Mapping[str, Any]) -> Iterator[tuple[Section, Mapping[str, Any]]]:
    if isinstance(node, Section):
        yield node, rules
    elif isinstance(node, Items):
        items = resolved(rules.get("items", {}))
        yield from ((item, items) for item in node.items if isinstance(item, Section))


def _keys(section: str, rules: Mapping[str, Any], config: Configuration | None) -> Mapping[str, Any] | None:
    """The keys of a section; None where any key may stand."""
    return keys_of(section, rules, None if config is None else config.get("scheduler.type"))


def required_params(name: object) -> tuple[str, ...]:
    """The arguments without which DeepSpeed cannot make the scheduler ``name``."""
    return tuple((scheduler_branch(name) or {}).get("required", ()))


def scheduler_names() -> tuple[str, ...]:
    """The schedulers that the schema knows."""
    return tuple(root()["properties"]["scheduler"]["properties"]["type"]["enum"])
