"""ModelShape: parameter counts to the last one, and its model file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsplan.errors import InputError
from dsplan.model import ModelShape

SCHEMA = json.loads((Path(__file__).parents[1] / "schemas" / "model.schema.json").read_text(encoding="utf-8"))


def minimal(**changes: Any) -> ModelShape:
    return ModelShape(**{"num_layers": 2, "hidden_size": 8, "num_attention_heads": 2, **changes})


# Counts that minGPT and DeepSpeed printed in published runs.
@pytest.mark.parametrize(
    ("sizes", "vocab_size", "block", "num_parameters"),
    [
        ((15, 3072, 16), 65, 128, 1_700_090_880),
        ((56, 8192, 16), 65, 128, 45_105_250_304),
        ((17, 8192, 16), 65, 128, 13_694_148_608),
        ((60, 8192, 16), 65, 128, 48_326_901_760),
        ((12, 768, 12), 3, 11, 85_069_056),
        ((48, 1600, 25), 3, 11, 1_475_588_800),
    ],
)
def test_counts_of_real_models(sizes: tuple[int, int, int], vocab_size: int, block: int, num_parameters: int) -> None:
    num_layers, hidden_size, heads = sizes
    shape = ModelShape(
        num_layers=num_layers,
        hidden_size=hidden_size,
        num_attention_heads=heads,
        vocab_size=vocab_size,
        max_position_embeddings=block,
    )
    assert shape.num_parameters == num_parameters


shapes = st.builds(
    lambda heads, head_size, **rest: ModelShape(num_attention_heads=heads, hidden_size=heads * head_size, **rest),
    heads=st.integers(1, 16),
    head_size=st.integers(1, 128),
    num_layers=st.integers(1, 12),
    vocab_size=st.integers(1, 60_000),
    max_position_embeddings=st.integers(1, 4096),
    tie_word_embeddings=st.booleans(),
    attention=st.sampled_from(["eager", "sdpa"]),
    activation=st.sampled_from(["gelu", "gelu_new"]),
    dropout=st.floats(0, 0.99),
)


@given(shapes)
def test_the_closed_form_and_the_list_of_tensors_agree(shape: ModelShape) -> None:
    layers, h, vocab = shape.num_layers, shape.hidden_size, shape.vocab_size
    heads = 1 if shape.tie_word_embeddings else 2
    closed = layers * (12 * h * h + 13 * h) + heads * vocab * h + shape.max_position_embeddings * h + 2 * h
    assert shape.num_parameters == closed
    assert sum(parameter.numel for parameter in shape.parameters) == closed
    assert len({parameter.name for parameter in shape.parameters}) == len(shape.parameters)


@given(shapes)
def test_every_shape_has_a_valid_model_file(shape: ModelShape) -> None:
    jsonschema.Draft202012Validator(SCHEMA).validate(shape.to_config())


def test_only_eager_attention_keeps_masks() -> None:
    assert minimal(attention="eager", max_position_embeddings=16).num_buffer_elements == 2 * 16 * 16
    assert minimal(attention="sdpa").num_buffer_elements == 0


def test_parameters_come_in_the_order_of_the_module() -> None:
    names = [parameter.name for parameter in minimal().parameters]
    assert names[:3] == ["transformer.wte.weight", "transformer.wpe.weight", "transformer.h.0.ln_1.weight"]
    assert names[-3:] == ["transformer.ln_f.weight", "transformer.ln_f.bias", "lm_head.weight"]
    assert minimal(tie_word_embeddings=True).parameters[-1].name == "transformer.ln_f.bias"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_layers": 0}, "num_layers: 0 "),
        ({"num_layers": True}, "num_layers: True "),
        ({"hidden_size": 8.0}, "hidden_size: 8.0 "),
        ({"num_attention_heads": 3}, "num_attention_heads: 3 heads do not divide the width 8; nearest that do: 2 or 4"),
        ({"vocab_size": -1}, "vocab_size: -1 "),
        ({"attention": "sdp"}, "attention: unknown value 'sdp'; did you mean sdpa"),
        ({"activation": "relu"}, "activation: unknown value 'relu'"),
        ({"dropout": 1.0}, "dropout: 1.0 "),
        ({"dropout": -0.1}, "dropout: -0.1 "),
        ({"model_type": "llama"}, "model_type: 'llama' "),
    ],
)
def test_invalid_shapes_name_the_field_and_the_value(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        minimal(**changes)
    assert str(caught.value).startswith(message)
