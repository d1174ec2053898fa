"""Any torch module as its parameters: what is read of it, and the decoder that stands for it.

Its states are exact; what its blocks run only it knows, and a dry run.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from dsplan.errors import InputError
from dsplan.families.config import LARGEST_DIMENSION, MODULE, Config, short
from dsplan.families.decoder import Decoder
from dsplan.families.parameter import Parameter

_FORM = "a list of [name, [sizes], trained]"


def described(module: Any, factory: str = "") -> dict[str, Any]:
    """The model file of a torch module: its parameters, each once, in the order of ``named_parameters()``.

    Args:
        module: an ``nn.Module``, on any device; meta will do.
        factory: ``package.file:function`` that makes it; empty: it cannot be dry-run from the file.
    """
    parameters = [
        [name, [int(size) for size in parameter.shape], bool(parameter.requires_grad)]
        for name, parameter in module.named_parameters()
    ]
    config = getattr(module, "config", None)
    return {
        "model_type": MODULE,
        "factory": factory,
        "hidden_size": _known(config, "hidden_size") or _width(parameters),
        "vocab_size": _known(config, "vocab_size") or max((sizes[0] for _, sizes, _ in parameters if sizes), default=1),
        "parameters": parameters,
    }


def module(c: Config) -> Decoder:
    """The decoder that stands for a module: all its parameters, and no blocks.

    Raises:
        InputError: the list of parameters is not of the form that :func:`described` gives it.
    """
    h, v = c.count("hidden_size"), c.count("vocab_size")
    return Decoder(
        causal_lm="a module of your own",
        hidden_size=h,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_size=h,
        intermediate_size=h,
        vocab_size=v,
        max_position_embeddings=LARGEST_DIMENSION,
        before=_parameters(c),
        kinds=((),),
        after=(),
        layers=(0,),
        prefix="",
        attentions=("sdpa",),
    )


def _parameters(c: Config) -> tuple[Parameter, ...]:
    listed = c.keys.get("parameters")
    if not isinstance(listed, list) or not listed:
        raise InputError(f"{c.where}: parameters: {short(listed)} is not allowed; it must be {_FORM}")
    found = []
    for entry in listed:
        if (
            not isinstance(entry, list)
            or len(entry) != 3
            or not isinstance(entry[0], str)
            or not isinstance(entry[1], list)
            or not all(type(size) is int and 0 <= size <= 10**12 for size in entry[1])
            or len(entry[1]) > 8
            or not isinstance(entry[2], bool)
        ):
            raise InputError(f"{c.where}: parameters: {short(entry)} is not allowed; it must be {_FORM}")
        found.append(Parameter(entry[0], tuple(entry[1]), trained=entry[2]))
    return tuple(found)


def _known(config: Any, name: str) -> int | None:
    value = getattr(config, name, None)
    return value if isinstance(value, int) and value > 0 else None


def _width(parameters: list[list[Any]]) -> int:
    """The size that most dimensions have: the residual stream's, which every layer reads and writes."""
    sizes = Counter(size for _, shape, _ in parameters for size in shape)
    return max(sizes, key=lambda size: (sizes[size], size)) if sizes else 1
