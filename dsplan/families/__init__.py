"""families: what each of transformers' decoders is made of, read from a ``config.json`` without transformers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from dsplan.errors import InputError, nearest
from dsplan.families.config import ALL_LINEAR, LARGEST_DIMENSION, MODULE, Config, short
from dsplan.families.decoder import Decoder, Experts
from dsplan.families.parameter import Parameter

__all__ = [
    "ALL_LINEAR",
    "FAMILIES",
    "LARGEST_DIMENSION",
    "MODULE",
    "OWN",
    "Config",
    "Decoder",
    "Experts",
    "Parameter",
    "decoder_of",
    "described",
    "unknown",
]

#: The section of a configuration that is dsplan's own: what is trained.
OWN = "dsplan"

#: By ``model_type``: who reads it, as module and function here; a minGPT needs none of them.
FAMILIES: dict[str, tuple[str, str]] = {
    **{name: ("gpt", name) for name in ("gpt2", "gpt_neox", "opt", "bloom", "falcon")},
    **{name: ("llama", name) for name in ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2")},
    "gemma3_text": ("llama", "gemma3"),
    **{name: ("llama", name) for name in ("phi3", "stablelm")},
    **{name: ("moe", name) for name in ("mixtral", "qwen2_moe", "qwen3_moe", "deepseek_v2", "deepseek_v3")},
}

#: The ``attribute_map`` of transformers' configuration classes: a key, and the other names that it is read under.
_RENAMED: dict[str, dict[str, tuple[str, ...]]] = {
    "gpt2": {
        "n_embd": ("hidden_size",),
        "n_positions": ("max_position_embeddings",),
        "n_head": ("num_attention_heads",),
        "n_layer": ("num_hidden_layers",),
    },
    "bloom": {"n_layer": ("num_hidden_layers",), "n_head": ("num_attention_heads",)},
    "mixtral": {"num_local_experts": ("num_experts",)},
    "qwen3_moe": {"num_experts": ("num_local_experts",)},
    "deepseek_v2": {"n_routed_experts": ("num_experts",)},
    "deepseek_v3": {"n_routed_experts": ("num_local_experts",)},
}


def decoder_of(keys: Mapping[str, Any], where: str) -> Decoder:
    """The decoder that a configuration of transformers' describes; ``where`` begins every message.

    Raises:
        InputError: an unknown ``model_type``, a missing key, or a value that is not allowed.
    """
    model_type = keys.get("model_type")
    if model_type == MODULE:
        from dsplan.families.module import module

        return module(Config(keys, where))
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise InputError(f"{where}: {unknown(model_type)}")
    if keys.get("quantization_config") is not None:
        raise InputError(f"{where}: quantization_config: quantized weights are not trained; plan the model without it")
    file, function = FAMILIES[model_type]
    read: Callable[[Config], Decoder] = getattr(import_module(f"dsplan.families.{file}"), function)
    return _trained(read(Config(keys, where, _RENAMED.get(model_type))), keys, where)


def described(module: Any, factory: str = "") -> dict[str, Any]:
    """The model file of a torch module (:func:`dsplan.families.module.described`)."""
    from dsplan.families.module import described as described_module

    return described_module(module, factory)


def _trained(decoder: Decoder, keys: Mapping[str, Any], where: str) -> Decoder:
    """What of ``decoder`` is trained, by the section that dsplan reads of its own (:data:`OWN`)."""
    own = keys.get(OWN)
    if own is None:
        return decoder
    if not isinstance(own, dict) or not own or own.keys() - {"lora_rank", "lora_targets", "frozen_layers"}:
        raise InputError(f"{where}: {OWN}: allowed keys are lora_rank, lora_targets, frozen_layers")
    from dsplan.families.adapters import with_frozen_layers, with_lora

    if "frozen_layers" in own:
        if len(own) > 1:
            raise InputError(f"{where}: {OWN}: with LoRA every layer is frozen; leave frozen_layers out")
        return with_frozen_layers(decoder, own["frozen_layers"], where)
    targets = own.get("lora_targets", [ALL_LINEAR])
    if not isinstance(targets, list) or not all(isinstance(target, str) for target in targets):
        raise InputError(f"{where}: lora_targets: {short(targets)} is not allowed; it must be a list of names")
    if "lora_rank" not in own:
        raise InputError(f"{where}: lora_rank: missing; lora_targets say where adapters are, and it how wide")
    return with_lora(decoder, own["lora_rank"], targets, where)


def unknown(model_type: object) -> str:
    """What to say of a ``model_type`` that nobody reads: the nearest that somebody does, and the way around."""
    known = ("mingpt", *FAMILIES)
    if not isinstance(model_type, str):
        return f"model_type must be a name; allowed: {', '.join(known)}"
    near = nearest(model_type[:80], known)
    hint = f"nearest: {' or '.join(near)}; " if near else ""
    name = model_type if len(model_type) <= 40 else f"{model_type[:37]}..."
    return (
        f"model_type: {name!r} is not a family that dsplan knows; {hint}allowed: {', '.join(known)}. Any torch module "
        "can be planned with --module PACKAGE.FILE:FACTORY"
    )
