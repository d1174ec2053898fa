"""Model files: the JSON that describes a shape, read strictly (schemas/model.schema.json)."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dsplan.errors import InputError, nearest
from dsplan.model import ACTIVATIONS, ATTENTIONS, ModelShape

MODEL_TYPES = ("mingpt",)

#: Keys of a model file, by the ModelShape field that each one sets.
KEYS = {
    "model_type": "model_type",
    "num_layers": "n_layer",
    "num_attention_heads": "n_head",
    "hidden_size": "n_embd",
    "vocab_size": "vocab_size",
    "max_position_embeddings": "block_size",
    "attention": "attention",
    "activation": "activation",
    "dropout": "dropout",
    "tie_word_embeddings": "tie_word_embeddings",
}
REQUIRED = ("model_type", "n_layer", "n_head", "n_embd")

_COUNTS = ("n_layer", "n_head", "n_embd", "vocab_size", "block_size")
_CHOICES = {"model_type": MODEL_TYPES, "attention": ATTENTIONS, "activation": ACTIVATIONS}


def read_model(path: str | Path) -> ModelShape:
    """The shape that a model file describes; of a directory, its ``config.json``.

    Keys that may be left out have ModelShape's defaults: vocabulary 50257, block 1024, eager
    attention, ``gelu_new``, dropout 0.1, untied.

    Raises:
        InputError: no such file, invalid JSON (with line and column), or a key or value that is not
            allowed (with what is).
    """
    file = Path(path)
    if file.is_dir():
        file = file / "config.json"
    name = file.parent.name if file.name == "config.json" else file.stem
    return shape_from_config(_load(file), where=str(file), name=name or "custom")


def shape_from_config(config: object, *, where: str, name: str = "custom") -> ModelShape:
    """The shape of a parsed model file; ``where`` begins every message.

    Raises:
        InputError: a key or value that is not allowed, or a required key that is missing.
    """
    if not isinstance(config, dict):
        raise InputError(f"{where}: a model file is a JSON object, not {_describe(config)}")
    # First, because the keys of another model_type are not this one's: the type is what is wrong.
    if "model_type" in config:
        _check("model_type", config["model_type"], where)
    for key, value in config.items():
        if key == "$schema":
            continue
        if key not in KEYS.values():
            raise InputError(f"{where}: unknown key {key!r}; {_hint(key, KEYS.values())}")
        _check(key, value, where)
    missing = [key for key in REQUIRED if key not in config]
    if missing:
        raise InputError(f"{where}: {', '.join(missing)} missing; required: {', '.join(REQUIRED)}")
    fields = {field: config[key] for field, key in KEYS.items() if key in config}
    try:
        return ModelShape(name=name, **fields)
    except InputError as error:
        raise InputError(f"{where}: {_with_key(str(error))}") from error


def _load(file: Path) -> object:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise InputError(f"{file}: no such model file") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: not a text file (byte {error.start} is not UTF-8)") from error
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror}") from error

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        seen: dict[str, Any] = {}
        for key, value in pairs:
            if key in seen:
                raise InputError(f"{file}: key {key!r} is given twice: {seen[key]!r} and {value!r}")
            seen[key] = value
        return seen

    def no_constant(text: str) -> None:
        raise InputError(f"{file}: {text} is not allowed; every number must be finite")

    try:
        document: object = json.loads(text, object_pairs_hook=unique, parse_constant=no_constant)
    except json.JSONDecodeError as error:
        raise InputError(f"{file}: line {error.lineno}, column {error.colno}: not valid JSON: {error.msg}") from error
    except ValueError as error:
        # A number of more than 4300 digits: Python refuses to convert it.
        raise InputError(f"{file}: not valid JSON: a number in it is too long") from error
    except RecursionError as error:
        raise InputError(f"{file}: nested too deeply; a model file is one flat JSON object") from error
    return document


def _check(key: str, value: object, where: str) -> None:
    """Types as JSON has them: true is no number and 12.0 is no count."""
    if key in _COUNTS:
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(f"{where}: {key}: {_describe(value)} is not allowed; it must be an integer of at least 1")
    elif key in _CHOICES:
        allowed = _CHOICES[key]
        if value not in allowed:
            hint = _hint(value, allowed) if isinstance(value, str) else f"allowed: {', '.join(allowed)}"
            raise InputError(f"{where}: {key}: {_describe(value)} is not allowed; {hint}")
    elif key == "dropout":
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.0 <= value < 1.0:
            raise InputError(
                f"{where}: dropout: {_describe(value)} is not allowed; it must be a number of at least 0 and below 1"
            )
    elif not isinstance(value, bool):
        raise InputError(f"{where}: {key}: {_describe(value)} is not allowed; it must be true or false")


def _describe(value: object) -> str:
    """A value as it stands in the file, short enough for one line."""
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _hint(name: str, allowed: Iterable[str]) -> str:
    options = list(allowed)
    near = nearest(name, options)
    return (f"did you mean {' or '.join(near)}? " if near else "") + f"allowed: {', '.join(options)}"


def _with_key(message: str) -> str:
    """ModelShape's message, with the name that its field has in the file."""
    field, colon, rest = message.partition(":")
    return f"{KEYS.get(field, field)}{colon}{rest}"
