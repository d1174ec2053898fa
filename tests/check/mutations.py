"""Configurations with one thing changed, for comparing what a check says with what DeepSpeed does."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CONFIGS = Path(__file__).parents[1] / "data" / "configs"
#: What a value is replaced by.
VALUES: tuple[Any, ...] = (
    "true",
    "false",
    "12",
    "5e8",
    "auto",
    "nonsense",
    -1,
    0,
    1,
    2.5,
    1e9,
    None,
    True,
    False,
    [],
    {},
)


def valid() -> list[Path]:
    """The configurations that DeepSpeed takes by itself."""
    return [path for path in _in_valid("*.json") if not path.name.startswith(("hf_", "accelerate_"))]


def for_hf() -> list[Path]:
    """The configurations that Hugging Face's Trainer completes."""
    return _in_valid("hf_*.json")


def for_accelerate() -> list[Path]:
    """The configurations that accelerate completes, and its own files."""
    return _in_valid("accelerate_*")


def _in_valid(pattern: str) -> list[Path]:
    return sorted((CONFIGS / "valid").glob(pattern))


def mutated(count: int, seed: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """``count`` changed configurations and what was done to each; the same ones for the same seed."""
    chance = random.Random(seed)
    documents = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in valid()}
    for _ in range(count):
        name = chance.choice(sorted(documents))
        document = copy.deepcopy(documents[name])
        section, key, path = chance.choice(list(_keys(document, "")))
        kind = chance.choice(("value", "value", "value", "key", "move", "remove"))
        if kind == "value":
            section[key] = chance.choice(VALUES)
            what = f"{path} = {json.dumps(section[key])}"
        elif kind == "key":
            at = chance.randrange(len(key))
            other = key[:at] + chance.choice("xyz_") + key[at + chance.randrange(2) :]
            section[other] = section.pop(key)
            what = f"{path} -> {other}"
        elif kind == "move":
            target, _, where = chance.choice(list(_keys(document, "")))
            target[key] = copy.deepcopy(section[key])
            what = f"{path} copied beside {where}"
        else:
            del section[key]
            what = f"{path} removed"
        yield f"{name}: {what}", document


def _keys(section: dict[str, Any], prefix: str) -> Iterator[tuple[dict[str, Any], str, str]]:
    for key, value in section.items():
        yield section, key, f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _keys(value, f"{prefix}{key}.")
