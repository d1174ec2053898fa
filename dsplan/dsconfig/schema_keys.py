"""Walking ``schemas/deepspeed_config.schema.json`` key by key, without jsonschema, which takes 100 ms to import."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from dsplan.schemas import schema

SCHEMA_NAME = "deepspeed_config"
TOP = ""


def root() -> Mapping[str, Any]:
    """The whole schema; callers must not change it."""
    return schema(SCHEMA_NAME)


def resolved(rules: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schema that a ``$ref`` points to, with the annotations beside it; of alternatives the one with keys."""
    if "$ref" in rules:
        beside = {key: value for key, value in rules.items() if key != "$ref"}
        rules = {**root()["$defs"][rules["$ref"].rpartition("/")[2]], **beside}
    for option in rules.get("anyOf", ()):
        found = resolved(option)
        if "properties" in found:
            return {**found, "anyOf": rules["anyOf"]}
    return rules


def keys_of(section: str, rules: Mapping[str, Any], scheduler: object = None) -> Mapping[str, Any] | None:
    """The keys of a section and their schemas; None for a section that takes any key.

    Args:
        section: dotted; empty at the top.
        rules: its resolved schema.
        scheduler: ``scheduler.type`` of the configuration, which decides what ``scheduler.params`` takes.
    """
    if section == "scheduler.params":
        return _scheduler_params(scheduler)
    return rules.get("properties") or None


def rules_of(path: str, scheduler: object = None) -> Mapping[str, Any] | None:
    """The schema of the key at the dotted ``path``; None when there is no such key."""
    rules, section = root(), TOP
    for key in path.split("."):
        keys = keys_of(section, rules, scheduler) or {}
        if key not in keys:
            return None
        rules = resolved(keys[key])
        section = join(section, key)
    return rules


def every_key() -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every dotted key that has a fixed name, and its schema; ``scheduler.params`` for every scheduler."""
    yield from _every_key(TOP, root())
    for case in scheduler_cases():
        yield from _every_key("scheduler.params", case["then"]["properties"]["params"])


def _every_key(section: str, rules: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for key, below in rules.get("properties", {}).items():
        found, path = resolved(below), join(section, key)
        yield path, found
        yield from _every_key(path, found)


def scheduler_cases() -> tuple[Mapping[str, Any], ...]:
    """For every scheduler of DeepSpeed's own, the branch of the schema that describes its arguments."""
    return tuple(root()["properties"]["scheduler"].get("allOf", ()))


def scheduler_branch(name: object) -> Mapping[str, Any] | None:
    """The schema of the arguments of the scheduler ``name``; None for one that is not described."""
    for case in scheduler_cases():
        if case["if"]["properties"]["type"].get("const") == name:
            params: Mapping[str, Any] = case["then"]["properties"]["params"]
            return params
    return None


def _scheduler_params(name: object) -> Mapping[str, Any] | None:
    params = scheduler_branch(name)
    closed = params is not None and params.get("additionalProperties") is False
    return params["properties"] if params is not None and closed else None


def join(section: str, key: str) -> str:
    """The dotted path of ``key`` in ``section``."""
    return f"{section}.{key}" if section else key
