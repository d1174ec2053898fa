"""Values: of the wrong type, or out of range."""

from __future__ import annotations

import json
import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from dsplan.check.configuration import Configuration
from dsplan.check.finding import ERROR, WARNING, Edit, Finding, Rule
from dsplan.check.known import Place, is_pydantic, places
from dsplan.check.rules.auto import is_auto
from dsplan.check.tree import Items, Node, Scalar, Section, plain

WRONG_TYPE = Rule(
    id="DS201", name="wrong-type", severity=ERROR, summary="The value is of a type that the key cannot hold."
)
OUT_OF_RANGE = Rule(
    id="DS202", name="out-of-range", severity=ERROR, summary="The value is not one of those that the key allows."
)
MISSING = Rule(
    id="DS203", name="missing-key", severity=ERROR, summary="A section lacks a key that it cannot do without."
)
RULES = (WRONG_TYPE, OUT_OF_RANGE, MISSING)

_WORDS = {
    "boolean": "true or false",
    "integer": "a whole number",
    "number": "a number",
    "string": "a string",
    "array": "a list",
    "object": "a section {...}",
    "null": "null",
}
_BOUNDS: tuple[tuple[str, str, Callable[[float, float], bool]], ...] = (
    ("minimum", "at least", operator.ge),
    ("exclusiveMinimum", "more than", operator.gt),
    ("maximum", "at most", operator.le),
    ("exclusiveMaximum", "less than", operator.lt),
)
#: What pydantic takes for a truth value (its lax mode).
_TRUE = ("true", "t", "yes", "y", "on", "1")
_FALSE = ("false", "f", "no", "n", "off", "0")
#: Keys of which the only word is "auto".
_OR_AUTO = (
    "zero_optimization.zenflow.select_interval",
    "zero_optimization.zenflow.update_interval",
    "data_types.keep_in_fp32_modules",
)
#: The types that a scheduler and an optimizer may have are checked by their own rules.
_ELSEWHERE = ("scheduler.type", "optimizer.type")


def types_and_ranges(config: Configuration) -> Iterator[Finding]:
    """Every value against the type and range of its key.

    Source: the fields of DeepSpeed's pydantic models, which convert a string that reads as the type
    (``"true"``, ``"16"`` but not ``"5e8"``); all other sections use the value as it is, so that
    ``"false"`` counts as true and ``"16" > 0`` stops the engine.
    """
    for place in places(config):
        if place.rules and not is_auto(config, place.path) and place.path not in _ELSEWHERE:
            yield from _judged(config, place, place.rules, place.member.node)


def _judged(config: Configuration, place: Place, rules: Mapping[str, Any], node: Node) -> Iterator[Finding]:
    value = plain(node)
    types = _types(rules)
    listed = isinstance(node, Items) and bool(node.items) and bool(types) and "array" not in types
    if isinstance(node, Items) and listed and (config.tuned or not config.alone):
        # What the autotuner is to try (``autotuning/utils.py``, get_first_config); a document may show it in part.
        for item in node.items:
            yield from _judged(config, place, rules, item)
        return
    if types and not any(_is(value, name) for name in types):
        yield _wrong_type(config, place, types, node)
        return
    allowed = rules.get("enum")
    if allowed is not None and value not in allowed:
        words = ", ".join(json.dumps(option) for option in allowed)
        yield config.finding(
            OUT_OF_RANGE, place.path, f"{place.path} cannot be {_show(value)}", f"one of {words}",
            member=place.member, on_value=True,
        )  # fmt: skip
    if isinstance(value, int | float) and not isinstance(value, bool):
        for name, words, holds in _BOUNDS:
            if name in rules and not holds(value, rules[name]):
                yield config.finding(
                    OUT_OF_RANGE, place.path, f"{place.path} cannot be {_show(value)}", f"{words} {rules[name]}",
                    member=place.member, on_value=True,
                )  # fmt: skip
    if isinstance(node, Items):
        yield from _elements(config, place, rules, node)


def _elements(config: Configuration, place: Place, rules: Mapping[str, Any], node: Items) -> Iterator[Finding]:
    inner = rules.get("items", {})
    for item in node.items:
        if inner and not isinstance(item, Section):
            yield from _judged(config, place, inner, item)
    for name, words in (("minItems", "at least"), ("maxItems", "at most")):
        count, bound = len(node.items), rules.get(name)
        if bound is not None and (count < bound if name == "minItems" else count > bound):
            message = f"{place.path} has {count} values"
            yield config.finding(
                OUT_OF_RANGE, place.path, message, f"{words} {bound}", member=place.member, on_value=True
            )


def _wrong_type(config: Configuration, place: Place, types: list[str], node: Node) -> Finding:
    value = plain(node)
    wanted = " or ".join(_WORDS[name] for name in types)
    allowed = (place.rules or {}).get("enum")
    converted = is_pydantic(place.section) and _converts(value, types)
    if allowed is not None and _corrected(value, types) not in map(str, allowed):
        converted = False
    if converted and "boolean" not in types and not _in_bounds(float(str(value)), place.rules or {}):
        converted = False
    effect = "DeepSpeed converts it, but what reads the file besides may take the text for true" if converted else ""
    if not converted and set(types) <= {"boolean", "null"} and isinstance(value, int | float) and value in (0, 1):
        # What is not pydantic's is tested for truth alone.
        converted, effect = True, f"DeepSpeed takes it for {_corrected(value, types)}"
    message = f"{place.path} is {_show(value)}, which is {_kind(value)} and not {wanted}"
    meant = _corrected(value, types)
    edit = Edit(offset=node.offset, end=node.end, text=meant) if meant and isinstance(node, Scalar) else None
    return config.finding(
        WRONG_TYPE, place.path, f"{message}; {effect}" if effect else message, meant or wanted,
        severity=WARNING if converted else ERROR, member=place.member, on_value=True, edit=edit,
    )  # fmt: skip


def _converts(value: object, types: list[str]) -> bool:
    """Whether pydantic makes a value of the right type of it."""
    if "boolean" in types:
        return value in (0, 1) or (isinstance(value, str) and value.lower() in (*_TRUE, *_FALSE))
    if isinstance(value, str) and ("integer" in types or "number" in types):
        try:
            int(value) if "integer" in types else float(value)
        except ValueError:
            return False
        return True
    return False


def _corrected(value: object, types: list[str]) -> str:
    """What is meant, as it is written in JSON; empty when that cannot be told."""
    if "boolean" in types:
        word = str(value).lower()
        return "true" if word in _TRUE else "false" if word in _FALSE else ""
    if isinstance(value, str) and ("integer" in types or "number" in types):
        try:
            number = float(value)
        except ValueError:
            return ""
        if abs(number) < 2**63 and (number.is_integer() or "number" in types):
            return str(int(number)) if number.is_integer() else repr(number)
    return ""


def _in_bounds(value: float, rules: Mapping[str, Any]) -> bool:
    return all(holds(value, rules[name]) for name, _, holds in _BOUNDS if name in rules)


def words(config: Configuration) -> Iterator[Finding]:
    """Keys that hold a number or a list, or one word.

    Source: ``runtime/zenflow/zenflow_config.py`` (``ZenFlowConfig.validate_fields``) and ``runtime/config.py``
    (``_initialize_params``, keep_in_fp32_modules).
    """
    for path in _OR_AUTO:
        value = config.get(path)
        if isinstance(value, str) and value != "auto":
            message = f"{path} cannot be {_show(value)}; the only word that it takes is auto"
            yield config.finding(OUT_OF_RANGE, path, message, '"auto"', on_value=True)


def missing(config: Configuration) -> Iterator[Finding]:
    """An optimizer without type makes none (``get_optimizer_name``); a scheduler without params stops the engine.

    Source: ``runtime/config.py`` (``get_optimizer_name``, ``get_scheduler_name``), ``runtime/engine.py``
    (``_scheduler_from_config``: ``scheduler(optimizer, **None)``).
    """
    if not config.complete:
        return
    for section in ("optimizer", "scheduler"):
        if not isinstance(config.get(section), dict):
            continue
        if not config.has(f"{section}.type"):
            message = f"{section} has no type, so DeepSpeed makes none"
            yield config.finding(MISSING, section, message, f'"type", or no {section} section')
        elif section == "scheduler" and not config.has("scheduler.params"):
            message = "scheduler has no params, and DeepSpeed stops without"
            yield config.finding(MISSING, section, message, '"params": {...}, empty if need be')


def enabled_without(config: Configuration) -> Iterator[Finding]:
    """DeepSpeed ``runtime/data_pipeline/config.py`` (get_curriculum_learning, get_dynamic_batching)."""
    sampling = "data_efficiency.data_sampling"
    for section, key in (("curriculum_learning", "curriculum_metrics"), ("dynamic_batching", "max_tokens")):
        path = f"{sampling}.{section}"
        if config.complete and config.get(f"{path}.enabled") and not config.has(f"{path}.{key}"):
            yield config.finding(MISSING, path, f"{section} is enabled and needs {key}", f'"{key}": ...')


def _types(rules: Mapping[str, Any]) -> list[str]:
    if "anyOf" in rules:
        return [name for option in rules["anyOf"] for name in _types(option)]
    if "const" in rules:
        return [_name(rules["const"])]
    types = rules.get("type", [])
    return [types] if isinstance(types, str) else list(types)


def _is(value: object, name: str) -> bool:
    if name == "integer":
        whole = isinstance(value, float) and value.is_integer()
        return (isinstance(value, int) and not isinstance(value, bool)) or whole
    if name == "number":
        return isinstance(value, int | float) and not isinstance(value, bool)
    return _name(value) == name


def _name(value: object) -> str:
    if value is None:
        return "null"
    names = ((bool, "boolean"), (int | float, "number"), (str, "string"), (list, "array"))
    return next((name for kind, name in names if isinstance(value, kind)), "object")


def _kind(value: object) -> str:
    return _WORDS[_name(value)].replace("true or false", "a truth value")


def _show(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."


CHECKS = (types_and_ranges, words, missing, enabled_without)
