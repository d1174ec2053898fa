"""The model that the options describe."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsplan.catalogue import decoder_names, preset, preset_names
from dsplan.cli.adapter_folder import adapter_hint
from dsplan.cli.flags import naming_flags, with_flags
from dsplan.cli.options import ModelOptions
from dsplan.errors import InputError, choice, nearest, require_positive
from dsplan.hub_names import published_name
from dsplan.infer import MAX_LAYERS, TOLERANCE, infer_shape
from dsplan.live_module import read_module
from dsplan.model import ACTIVATIONS, ATTENTIONS, ModelShape
from dsplan.modelfile import FLASH_ATTENTION, TRAINED, changed, read_model
from dsplan.units import format_count, parse_count

_SHAPE_FLAGS = {"num_layers": "--n-layer", "num_attention_heads": "--n-head", "hidden_size": "--n-embd"}
#: Widths beyond which a number is a slip of the keyboard: the widest published model has 25,600.
_MAX_WIDTH = 1_000_000
#: Parameters below which a count has lost its suffix.
_FEWEST = 1000
#: The same for vocabularies and blocks: the longest published context has 10,000,000 tokens.
_MAX_TOKENS = 10_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInput:
    """A model, and the lines that say what was inferred when only a count was given."""

    shape: ModelShape
    inferred: str | None = None


def read_model_options(options: ModelOptions) -> ModelInput:
    """The model of one of ``--params``, ``--model``, ``--module`` and the shape; shape flags override the first two.

    Raises:
        InputError: none or two of them, an unknown name, an invalid value or file.
    """
    shape = _shape_flags(options)
    module = getattr(options, "module", None)
    if module is not None:
        if options.params is not None or options.model is not None or shape:
            raise InputError(f"--module {module} says what the model is; leave the model's other flags out")
        return ModelInput(shape=read_module(module))
    if options.params is not None and options.model is not None:
        raise InputError(
            f"--params {options.params} and --model {options.model} contradict each other; give one of them"
        )
    if options.params is not None:
        found = _inferred(options.params, shape)
    elif options.model is not None:
        found = ModelInput(shape=_named(options.model, shape))
    else:
        found = ModelInput(shape=_given(shape))
    if found.shape.num_layers > MAX_LAYERS:
        raise InputError(f"--n-layer: {found.shape.num_layers} is not allowed; at most {MAX_LAYERS}")
    return found


def _shape_flags(options: ModelOptions) -> dict[str, Any]:
    """The ModelShape fields that were given, checked one by one."""
    counts = {
        "num_layers": options.n_layer,
        "num_attention_heads": options.n_head,
        "hidden_size": options.n_embd,
        "vocab_size": options.vocab_size,
        "max_position_embeddings": options.block_size,
    }
    with naming_flags():
        for field, value in counts.items():
            if value is not None:
                require_positive(field, value)
        names = {
            "attention": options.attention and choice("attention", options.attention, (*ATTENTIONS, FLASH_ATTENTION)),
            "activation": options.activation and choice("activation", options.activation, ACTIVATIONS),
        }
    for flag, given, most in (
        ("--n-embd", options.n_embd, _MAX_WIDTH),
        ("--vocab-size", options.vocab_size, _MAX_TOKENS),
        ("--block-size", options.block_size, _MAX_TOKENS),
    ):
        if given is not None and given > most:
            raise InputError(f"{flag}: {given} is not allowed; at most {most}")
    fields = {
        **counts,
        **names,
        "dropout": options.dropout,
        "tie_word_embeddings": _tied(options),
        **_trained(options),
    }
    return {field: value for field, value in fields.items() if value is not None}


def _tied(options: ModelOptions) -> bool | None:
    if options.tie_word_embeddings and options.no_tie_word_embeddings:
        raise InputError("--tie-word-embeddings and --no-tie-word-embeddings contradict each other; give one of them")
    return True if options.tie_word_embeddings else False if options.no_tie_word_embeddings else None


def _trained(options: ModelOptions) -> dict[str, Any]:
    """What of the model is trained: adapters' rank and targets, or the number of frozen layers."""
    rank, frozen = getattr(options, "lora_rank", None), getattr(options, "frozen_layers", None)
    targets = getattr(options, "lora_targets", None)
    for flag, value in (("--lora-rank", rank), ("--frozen-layers", frozen)):
        if value is not None:
            require_positive(flag, value)
    if targets is not None and rank is None:
        raise InputError("--lora-targets: say how wide the adapters are with --lora-rank")
    names = None if targets is None else [name.strip() for name in targets.split(",") if name.strip()]
    return {"lora_rank": rank, "lora_targets": names, "frozen_layers": frozen}


def _inferred(params: str, shape: dict[str, Any]) -> ModelInput:
    wanted = parse_count(params, "--params")
    if wanted < _FEWEST:
        raise InputError(f"--params: {params} is not allowed; at least {_FEWEST:,}; for billions write {params}B")
    unfit = [f"--{field.replace('_', '-')}" for field in TRAINED if field in shape]
    if unfit:
        raise InputError(f"{', '.join(unfit)}: only a decoder of transformers' has them; name one with --model")
    with naming_flags():
        found = infer_shape(wanted, shape)
    fixed = [flag for field, flag in _SHAPE_FLAGS.items() if field in shape]
    if {"num_layers", "hidden_size"} <= shape.keys() and abs(found.shape.num_parameters / wanted - 1) > TOLERANCE:
        raise InputError(
            f"--params {params} contradicts {', '.join(fixed)}, which make "
            f"{format_count(found.shape.num_parameters)} parameters; leave --params out"
        )
    return ModelInput(shape=found.shape, inferred=with_flags(found.explanation))


def _named(name: str, shape: dict[str, Any]) -> ModelShape:
    """A preset, or what a file describes; a preset's name wins, ``./NAME`` is always a file.

    A file wins over a name of the Hugging Face Hub, which is a preset where the catalogue has that model.
    """
    known = preset_names()
    wanted = name.strip().casefold()
    if wanted in map(str.casefold, known) or wanted in map(str.casefold, decoder_names()):
        found = preset(name)
    elif (published := _published(name)) is not None:
        found = preset(published)
    elif name and (Path(name).exists() or "/" in name or Path(name).suffix == ".json"):
        hint = adapter_hint(Path(name))
        if hint:
            raise InputError(f"--model: {name} holds an adapter of PEFT's and not a model; write {hint}")
        found = read_model(name)
    else:
        near = [f"--params {name}"] if _is_count(name) else nearest(name, (*known, *decoder_names()))
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise InputError(
            f"--model: {name!r} is neither a preset nor a file; {hint}allowed: {', '.join(known)}, "
            "a published decoder such as llama-3.1-8b (docs/models.md), or a model file or folder"
        )
    if not shape:
        return found
    with naming_flags():
        return changed(found, shape)


def _published(name: str) -> str | None:
    with naming_flags():
        return published_name(name)


def _given(shape: dict[str, Any]) -> ModelShape:
    trained = {field: value for field, value in shape.items() if field in TRAINED}
    missing = [flag for field, flag in _SHAPE_FLAGS.items() if field not in shape]
    if len(missing) == len(_SHAPE_FLAGS):
        raise InputError("no model: give --params 45B, --model NAME|PATH, or --n-layer, --n-head and --n-embd")
    if missing:
        raise InputError(f"{', '.join(missing)}: missing; a shape needs {', '.join(_SHAPE_FLAGS.values())}")
    if shape["num_attention_heads"] > shape["hidden_size"]:
        raise InputError(f"--n-head: more heads ({shape['num_attention_heads']}) than --n-embd {shape['hidden_size']}")
    with naming_flags():
        found = ModelShape(**{field: value for field, value in shape.items() if field not in TRAINED})
        return changed(found, trained) if trained else found


def _is_count(text: str) -> bool:
    try:
        parse_count(text)
    except InputError:
        return False
    return True
