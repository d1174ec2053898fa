"""A shape from a parameter count: "45B" is enough to start planning.

Published decoders grow in width and depth together, so the width comes from the published model
whose size is nearest, and the depth makes the count come out. Legend: Ψ the wanted count, L
``num_layers``, h ``hidden_size``, a ``num_attention_heads``, V ``vocab_size``, T
``max_position_embeddings``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from dsplan.catalogue import Rung, ladder
from dsplan.errors import InputError, choice, nearest, require_positive
from dsplan.model import ACTIVATIONS, ATTENTIONS, ModelShape
from dsplan.units import format_count

#: Difference between the wanted and the inferred count that the nearest rung of the ladder may leave.
TOLERANCE = 0.03

#: Difference beyond which there is no such model: a few coarse shapes lie between the smallest counts.
FURTHEST = 0.10

#: Blocks beyond which a count is a slip of the keyboard: the deepest of the ladder has 128.
MAX_LAYERS = 10_000

_FIELDS = tuple(field.name for field in fields(ModelShape))
_NAMES = {"attention": ATTENTIONS, "activation": ACTIVATIONS}
_SWITCHES = ("gated_mlp", "bias", "tie_word_embeddings")
_SETTABLE = (
    "num_layers",
    "hidden_size",
    "num_attention_heads",
    "vocab_size",
    "max_position_embeddings",
    "tie_word_embeddings",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class InferredShape:
    """A shape that was inferred, and the lines that tell a person how."""

    shape: ModelShape
    explanation: str


def infer_shape(num_parameters: int, overrides: Mapping[str, Any] | None = None) -> InferredShape:
    """A decoder of about ``num_parameters`` parameters.

    The defaults are vocabulary 50257, block 2048 (1024 below 1B), ``sdpa`` attention, ``gelu_new``,
    dropout 0.1, untied. ``overrides`` are ModelShape fields and win; None means not given. The
    count is within 3 % from 100M on, unless an override of the depth or the width forbids it.

    Raises:
        InputError: a count that no such shape has, or an override that is unknown or invalid.
    """
    require_positive("num_parameters", num_parameters)
    given = _validated(overrides or {})
    base: dict[str, Any] = {
        "name": f"gpt-{format_count(num_parameters).replace('.0', '')}",
        "max_position_embeddings": 2048 if num_parameters >= 10**9 else 1024,
        "attention": "sdpa",
        **given,
    }
    if "hidden_size" in given:
        shape, origin = _of_width(num_parameters, base), "at the given width"
    elif "num_layers" in given:
        shape, origin = _of_depth(num_parameters, base), "at the given number of layers"
    else:
        shape, origin = _from_ladder(num_parameters, base)
    return InferredShape(shape=shape, explanation=_explain(num_parameters, shape, origin))


def _validated(overrides: Mapping[str, Any]) -> dict[str, Any]:
    given = {field: value for field, value in overrides.items() if value is not None}
    for field, value in tuple(given.items()):
        if field not in _FIELDS:
            near = nearest(field, _FIELDS)
            hint = f"did you mean {' or '.join(near)}? " if near else ""
            raise InputError(f"unknown model field {field!r}; {hint}allowed: {', '.join(_FIELDS)}")
        if field.startswith("num_") or field.endswith("_size") or field == "max_position_embeddings":
            require_positive(field, value)
        elif field in _NAMES:
            given[field] = choice(field, str(value), _NAMES[field])
        elif field in _SWITCHES and not isinstance(value, bool):
            raise InputError(f"{field}: {value!r} is not allowed; it must be true or false")
        elif field == "dropout" and (isinstance(value, bool) or not isinstance(value, (int, float))):
            raise InputError(f"dropout: {value!r} is not allowed; it must be a number of at least 0 and below 1")
    return given


def _from_ladder(wanted: int, base: dict[str, Any]) -> tuple[ModelShape, str]:
    """A shape and where its width is from: the rung nearest to Ψ in log space that comes within the tolerance."""
    rungs = [(rung, _on_rung(rung, base)) for rung in ladder()]
    rungs.sort(key=lambda pair: abs(math.log(_sized(pair[1], pair[0].num_layers).num_parameters / wanted)))
    shapes = []
    for rung, wide in rungs:
        layers = _closest_num_layers(wanted, wide)
        if layers > MAX_LAYERS:
            continue
        shape = _sized(wide, layers)
        origin = (
            f"{'width' if shape.hidden_size == rung.hidden_size else 'about the width'} of {rung.family}, {rung.source}"
        )
        if abs(_difference(wanted, shape)) <= TOLERANCE:
            return shape, origin
        shapes.append((shape, origin))
    if not shapes:
        raise InputError(f"num_parameters: {wanted:,} is not allowed; it would take more than {MAX_LAYERS:,} layers")
    best, origin = min(shapes, key=lambda pair: abs(_difference(wanted, pair[0])))
    if abs(_difference(wanted, best)) <= FURTHEST:
        return best, origin
    raise InputError(
        f"num_parameters: no GPT of {wanted:,} parameters has a vocabulary of {best.vocab_size} and a block of "
        f"{best.max_position_embeddings}; the nearest has {best.num_parameters:,} (num_layers {best.num_layers}, "
        f"hidden_size {best.hidden_size}): ask for another count or set vocab_size, num_layers or hidden_size"
    )


def _on_rung(rung: Rung, base: dict[str, Any]) -> dict[str, Any]:
    """The rung's width and heads, or near it a width that the given number of heads divides."""
    heads = base.get("num_attention_heads", rung.num_attention_heads)
    width = rung.hidden_size
    if width % heads:
        step = math.lcm(heads, 64)
        width = max(1, round(width / step)) * step
    return {**base, "hidden_size": width, "num_attention_heads": heads}


def _of_width(wanted: int, base: dict[str, Any]) -> ModelShape:
    """The shape of the given width; its depth, unless given too, brings it closest to Ψ."""
    layers = base.get("num_layers") or _closest_num_layers(wanted, base)
    if layers > MAX_LAYERS:
        raise InputError(
            f"hidden_size: {base['hidden_size']} is not allowed; "
            f"{wanted:,} parameters would take {layers:,} layers, at most {MAX_LAYERS:,} are planned"
        )
    return _sized(base, layers)


def _closest_num_layers(wanted: int, base: dict[str, Any]) -> int:
    """L = (Ψ - what is not in a block) / (a block), at least 1."""
    one = _sized(base, 1)
    per_block = one.num_parameters_per_block
    return max(1, round((wanted - (one.num_parameters - per_block)) / per_block))


def _of_depth(wanted: int, base: dict[str, Any]) -> ModelShape:
    """The shape of the given depth whose width, a multiple of the head size, brings it closest to Ψ."""
    layers = base["num_layers"]
    # Ψ >= 12Lh², so no wider shape can be closer.
    limit = math.isqrt(wanted // (12 * layers)) + 1
    step = _step(limit, base)

    def shape(multiple: int) -> ModelShape:
        return _sized({**base, "hidden_size": multiple * step}, layers)

    low, high = 1, limit // step + 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if shape(middle).num_parameters <= wanted else (low, middle)
    return min((shape(low), shape(high)), key=lambda candidate: abs(_difference(wanted, candidate)))


def _sized(base: dict[str, Any], layers: int) -> ModelShape:
    heads = base.get("num_attention_heads") or _num_heads(base["hidden_size"])
    return ModelShape(**{**base, "num_layers": layers, "num_attention_heads": heads})


def _step(width: int, base: dict[str, Any]) -> int:
    """Widths near ``width`` are multiples of this: whole heads of the usual size, 16 where one is too wide."""
    if "num_attention_heads" in base:
        return math.lcm(base["num_attention_heads"], 8)
    return 128 if width >= 2048 else 64 if width >= 256 else 16


def _num_heads(width: int) -> int:
    """Heads of 128 elements from width 2048 on, of 64 below, as published; else as near as divides."""
    usual = 128 if width >= 2048 else 64
    sizes = [size for size in range(1, min(width, 128) + 1) if width % size == 0]
    return width // min(sizes, key=lambda size: (abs(math.log(size / usual)), -size))


def _difference(wanted: int, shape: ModelShape) -> float:
    return shape.num_parameters / wanted - 1


def _explain(wanted: int, shape: ModelShape, origin: str) -> str:
    return (
        f"{format_count(wanted)} parameters: inferred a GPT of {shape.num_layers} layers, width {shape.hidden_size}, "
        f"{shape.num_attention_heads} heads, vocabulary {shape.vocab_size}, block {shape.max_position_embeddings} "
        f"({origin}); exactly {shape.num_parameters:,} parameters, {_difference(wanted, shape):+.2%}.\n"
        f"To override: {', '.join(_SETTABLE)}, or a model file."
    )
