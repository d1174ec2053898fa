"""Model files: the JSON that describes a shape, read strictly (schemas/model.schema.json).

A minGPT's own, or the ``config.json`` of a decoder of transformers'. Of the latter, keys that say nothing about
memory are passed over, as transformers does.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from dsplan.errors import InputError, nearest
from dsplan.families import FAMILIES, OWN, Decoder, decoder_of, unknown
from dsplan.families.config import short
from dsplan.files import read_at_most
from dsplan.model import ACTIVATIONS, ATTENTIONS, MINGPT, ModelShape

MODEL_TYPES = (MINGPT, *FAMILIES)
#: Bytes of the largest file that is read: those that are published have a few thousand.
LARGEST_FILE = 4 * 1024**2

#: How attention is computed, as transformers spells it in ``attn_implementation``.
FLASH_ATTENTION = "flash_attention_2"
_ATTENTION_KEYS = ("attn_implementation", "_attn_implementation", "_attn_implementation_internal")

#: Keys of a configuration that say nothing about the model's memory, and may be long.
_PASSED_OVER = ("id2label", "label2id", "auto_map", "task_specific_params", "transformers_version", "_name_or_path")

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
#: What tells a configuration of transformers', and one of DeepSpeed's, that has no model_type.
_TRANSFORMERS = ("architectures", "hidden_size", "num_hidden_layers")
_DEEPSPEED = ("zero_optimization", "train_batch_size", "train_micro_batch_size_per_gpu")
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
    # First, because the keys of another model_type are not this one's: the type decides what is read.
    if "model_type" in config and config["model_type"] != MINGPT:
        return _hugging_face_shape(config, where=where, name=name)
    if "model_type" not in config:
        if any(key in config for key in _TRANSFORMERS):
            raise InputError(f"{where}: model_type is missing; allowed: {', '.join(MODEL_TYPES)}")
        if any(key in config for key in _DEEPSPEED):
            raise InputError(f"{where}: is a DeepSpeed configuration and not a model; give it with --ds-config")
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


def changed(shape: ModelShape, fields: Mapping[str, Any]) -> ModelShape:
    """``shape`` with other values of ``fields`` (ModelShape's), called "NAME, changed".

    Those of a decoder of transformers' are changed in its configuration, which is read again.

    Raises:
        InputError: a value that is not allowed, or a field that this family has no key for.
    """
    name = f"{shape.name}, changed"
    if shape.decoder is None:
        if fields.keys() & set(TRAINED):
            raise InputError(
                f"{', '.join(sorted(fields.keys() & set(TRAINED)))}: only a decoder of transformers' has them"
            )
        return replace(shape, **fields, name=name)
    config = shape.to_config()
    for field, value in fields.items():
        if field == "activation":
            raise InputError(f"activation: the configuration of a {shape.model_type} says it; change it there")
        if field == "dropout":
            config |= {key: value for key in _DROPOUTS if key in config or key == "attention_dropout"}
            continue
        if field in TRAINED:
            config[OWN] = {**config.get(OWN, {}), field: list(value) if field == "lora_targets" else value}
            continue
        config[_key_of(field, config)] = value
        if field == "num_layers":
            config.pop("layer_types", None)
    return shape_from_config(config, where=shape.name, name=name)


#: What says that not all is trained; no field of ModelShape, which has the parameters that come of it.
TRAINED = ("lora_rank", "lora_targets", "frozen_layers")
#: Every key of a family that is a probability of dropout.
_DROPOUTS = ("attention_dropout", "attn_pdrop", "resid_pdrop", "embd_pdrop", "hidden_dropout", "dropout")
#: The keys of most families by ModelShape's field, and what GPT-2 and BLOOM call them.
_FIELD_KEYS = {
    "num_layers": ("num_hidden_layers", "n_layer"),
    "num_attention_heads": ("num_attention_heads", "n_head"),
    "hidden_size": ("hidden_size", "n_embd", "n_embed"),
    "max_position_embeddings": ("max_position_embeddings", "n_positions", "seq_length"),
    "attention": ("attn_implementation",),
}


def _key_of(field: str, config: Mapping[str, Any]) -> str:
    keys = _FIELD_KEYS.get(field, (field,))
    return next((key for key in keys if key in config), keys[0])


def _hugging_face_shape(config: Mapping[str, Any], *, where: str, name: str) -> ModelShape:
    """The shape of a configuration of transformers'; of one with an image tower, its text decoder."""
    model_type = config["model_type"]
    text = config.get("text_config")
    if isinstance(text, dict) and isinstance(model_type, str) and f"{model_type}_text" in FAMILIES:
        tied = config.get("tie_word_embeddings")
        config = {**({} if tied is None else {"tie_word_embeddings": tied}), **text, "model_type": f"{model_type}_text"}
        where = f"{where}: text_config"
    if not isinstance(model_type, str):
        raise InputError(f"{where}: model_type: {_describe(model_type)} is not allowed; {unknown(model_type)}")
    decoder = decoder_of(config, where)
    attention = _attention(config, decoder, where)
    kept = {key: value for key, value in config.items() if key not in _PASSED_OVER and _is_flat(value)}
    for key in _ATTENTION_KEYS:
        kept.pop(key, None)
    return ModelShape.of_decoder(decoder, kept, name=name, attention=attention)


def _attention(config: Mapping[str, Any], decoder: Decoder, where: str) -> str:
    """How attention is computed: as the configuration says, else as transformers chooses for the family."""
    found = next((config[key] for key in _ATTENTION_KEYS if config.get(key) is not None), decoder.default_attention)
    found = FLASH_ATTENTION if found == "flash" else found
    if found not in decoder.attentions:
        raise InputError(
            f"{where}: attn_implementation: {_describe(found)} is not allowed; a {config['model_type']} has "
            f"{', '.join(decoder.attentions)}"
        )
    return str(found)


def _is_flat(value: object, depth: int = 3) -> bool:
    """Whether a value is nested at most ``depth`` deep: what is deeper is nothing that transformers' decoders read."""
    if isinstance(value, dict):
        return depth > 0 and all(_is_flat(item, depth - 1) for item in value.values())
    if isinstance(value, list):
        return depth > 0 and all(_is_flat(item, depth - 1) for item in value)
    return True


def _load(file: Path) -> object:
    try:
        content = read_at_most(file, LARGEST_FILE)
        if content is None:
            raise InputError(f"{file}: is too large for a model file; at most {LARGEST_FILE:,} bytes")
        text = content.decode("utf-8-sig")
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
                raise InputError(f"{file}: key {key!r} is given twice: {short(seen[key])} and {short(value)}")
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
    """A value as it stands in the file, short enough for one line; what is nested or long is not written out."""
    if isinstance(value, list) and len(value) < 10 and not any(isinstance(item, (list, dict)) for item in value):
        text = json.dumps(value)
        return text if len(text) <= 40 else f"{text[:37]}..."
    return short(value)


def _hint(name: str, allowed: Iterable[str]) -> str:
    options = list(allowed)
    near = nearest(name, options)
    return (f"did you mean {' or '.join(near)}? " if near else "") + f"allowed: {', '.join(options)}"


def _with_key(message: str) -> str:
    """ModelShape's message, with the name that its field has in the file."""
    field, colon, rest = message.partition(":")
    return f"{KEYS.get(field, field)}{colon}{rest}"
