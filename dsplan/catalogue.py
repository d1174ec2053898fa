"""The catalogue: accelerators, model presets and the family ladder, each figure with its source.

The data is in ``dsplan/catalog/*.json``; this file reads it once and turns it into types.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from dsplan.errors import InputError, choice, nearest
from dsplan.hardware import Accelerator
from dsplan.model import ModelShape
from dsplan.modelfile import shape_from_config

# What drivers and people put before the name that tells cards apart: "NVIDIA GeForce RTX 3090".
_MAKERS = re.compile(r"^(?:nvidia|tesla|geforce|amd|instinct|intel|habana)-")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rung:
    """One published model of the ladder from which a shape is inferred; ``note`` says what differs from it."""

    family: str
    num_layers: int
    hidden_size: int
    num_attention_heads: int
    source: str
    note: str = ""


@cache
def accelerators() -> tuple[Accelerator, ...]:
    """Every catalogued accelerator, by vendor and memory."""
    return tuple(_accelerator(entry) for entry in _data("accelerators.json")["accelerators"])


def accelerator(name: str) -> Accelerator:
    """The accelerator called ``name``: its key, an alias or the driver's name, in any case.

    Raises:
        InputError: no such accelerator, with the nearest names; or one of several memory sizes.
    """
    found = find_accelerator(name)
    if found is not None:
        return found
    keys = [entry.name for entry in accelerators()]
    sizes = [key for key in keys if key.startswith(f"{normalise(name)}-")]
    if len(sizes) > 1:
        raise InputError(f"accelerator: {name!r} comes with more than one memory size; write {' or '.join(sizes)}")
    near = _keys_of(nearest(normalise(name), _by_name()))
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise InputError(f"accelerator: unknown name {name!r}; {hint}allowed: {', '.join(keys)}")


def find_accelerator(name: str) -> Accelerator | None:
    """The accelerator called ``name``, or None."""
    return _by_name().get(normalise(name))


def normalise(name: str) -> str:
    """A device name as the catalogue spells it: ``"NVIDIA A100-SXM4-80GB"`` -> ``"a100-sxm4-80gb"``."""
    text = re.sub(r"[\s_-]+", "-", name.strip().casefold())
    while _MAKERS.match(text):
        text = _MAKERS.sub("", text)
    return text


@cache
def preset(name: str) -> ModelShape:
    """The preset called ``name``, in any case: a minGPT, or one of transformers' decoders as it is published.

    Raises:
        InputError: no such preset, with the nearest names.
    """
    presets = {entry["name"]: entry["config"] for entry in _data("models.json")["presets"]}
    if name.strip().casefold() not in (key.casefold() for key in presets):
        presets |= {entry["name"]: entry["config"] for entry in _data("decoders.json")["decoders"]}
    key = choice("model", name.strip(), presets)
    return shape_from_config(presets[key], where=f"preset {key}", name=key)


def preset_names() -> tuple[str, ...]:
    """The names of the minGPTs, in the catalogue's order."""
    return tuple(entry["name"] for entry in _data("models.json")["presets"])


def decoder_names() -> tuple[str, ...]:
    """The names of the published decoders, in the catalogue's order."""
    return tuple(entry["name"] for entry in _data("decoders.json")["decoders"])


@cache
def ladder() -> tuple[Rung, ...]:
    """Published models of growing width, from which :mod:`dsplan.infer` takes its widths."""
    return tuple(Rung(**entry) for entry in _data("models.json")["ladder"])


def _accelerator(entry: dict[str, Any]) -> Accelerator:
    fields = {key: value for key, value in entry.items() if key not in ("aliases", "sources")}
    return Accelerator(**fields, sources=tuple(f"{figure}: {source}" for figure, source in entry["sources"].items()))


@cache
def _by_name() -> dict[str, Accelerator]:
    """Accelerators by normalised key and alias."""
    entries = _data("accelerators.json")["accelerators"]
    names: dict[str, Accelerator] = {}
    for entry, found in zip(entries, accelerators(), strict=True):
        names |= dict.fromkeys((normalise(name) for name in (entry["name"], *entry["aliases"])), found)
    return names


def _keys_of(names: Iterable[str]) -> list[str]:
    """The keys that the names stand for, each once: two aliases of one card are one suggestion."""
    return list(dict.fromkeys(_by_name()[name].name for name in names))


@cache
def _data(file: str) -> dict[str, Any]:
    text = (files("dsplan") / "catalog" / file).read_text(encoding="utf-8")
    document: dict[str, Any] = json.loads(text)
    return document
