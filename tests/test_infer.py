"""infer: a parameter count becomes a shape of that count, and the explanation says how."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsplan.errors import InputError
from dsplan.infer import infer_shape

# Uniform in the logarithm: otherwise nearly every example is beyond 10B.
counts = st.floats(8.0, 12.0).map(lambda exponent: min(10**12, max(10**8, round(10**exponent))))


@given(counts)
def test_the_count_is_within_three_percent(num_parameters: int) -> None:
    shape = infer_shape(num_parameters).shape
    assert shape.num_parameters == pytest.approx(num_parameters, rel=0.03)
    assert shape.hidden_size // shape.num_attention_heads in {64, 128}
    assert 1 <= shape.num_layers <= 256


@given(counts, st.sampled_from([32_000, 50_257, 128_256]), st.booleans(), st.sampled_from([512, 4096]))
def test_the_vocabulary_and_the_block_are_counted(count: int, vocab_size: int, tied: bool, block: int) -> None:
    given = {"vocab_size": vocab_size, "tie_word_embeddings": tied, "max_position_embeddings": block}
    shape = infer_shape(count, given).shape
    assert shape.num_parameters == pytest.approx(count, rel=0.03)
    assert (shape.vocab_size, shape.tie_word_embeddings, shape.max_position_embeddings) == (vocab_size, tied, block)


@pytest.mark.parametrize(
    ("num_parameters", "num_layers", "hidden_size", "heads"),
    [
        (125 * 10**6 + 50257 * 768, 12, 768, 12),
        (13 * 10**8, 22, 2048, 16),
        (67 * 10**8, 31, 4096, 32),
        (45 * 10**9, 55, 8192, 64),
        (175 * 10**9, 96, 12288, 96),
        (10**12, 127, 25600, 200),
    ],
)
def test_shapes_are_those_of_published_models(
    num_parameters: int, num_layers: int, hidden_size: int, heads: int
) -> None:
    shape = infer_shape(num_parameters).shape
    assert (shape.num_layers, shape.hidden_size, shape.num_attention_heads) == (num_layers, hidden_size, heads)


def test_defaults() -> None:
    shape = infer_shape(45 * 10**9).shape
    assert (shape.vocab_size, shape.max_position_embeddings) == (50257, 2048)
    assert (shape.attention, shape.activation, shape.dropout) == ("sdpa", "gelu_new", 0.1)
    assert not shape.tie_word_embeddings
    assert shape.name == "gpt-45B"
    assert infer_shape(10**9 - 1).shape.max_position_embeddings == 1024


def test_overrides_win() -> None:
    given: dict[str, Any] = {
        "num_layers": 56,
        "hidden_size": 8192,
        "num_attention_heads": 16,
        "vocab_size": 65,
        "max_position_embeddings": 128,
        "attention": "eager",
        "activation": "gelu",
        "dropout": 0.0,
        "tie_word_embeddings": False,
    }
    shape = infer_shape(45 * 10**9, given).shape
    assert {field: getattr(shape, field) for field in given} == given
    assert shape.num_parameters == 45_105_250_304


def test_none_is_not_given() -> None:
    assert infer_shape(10**9, {"num_layers": None, "vocab_size": None}) == infer_shape(10**9)


@given(counts, st.integers(8, 100))
def test_a_given_depth_finds_the_closest_width(num_parameters: int, num_layers: int) -> None:
    shape = infer_shape(num_parameters, {"num_layers": num_layers}).shape
    assert shape.num_layers == num_layers
    assert shape.hidden_size % shape.num_attention_heads == 0
    # One step of the width, at most 128, away on either side is no closer.
    for width in (shape.hidden_size - 128, shape.hidden_size + 128):
        if width > 0:
            other = infer_shape(num_parameters, {"num_layers": num_layers, "hidden_size": width}).shape
            assert abs(shape.num_parameters - num_parameters) <= abs(other.num_parameters - num_parameters)


@given(counts, st.sampled_from([1024, 2048, 4096]))
def test_a_given_width_finds_the_closest_depth(num_parameters: int, hidden_size: int) -> None:
    shape = infer_shape(num_parameters, {"hidden_size": hidden_size}).shape if num_parameters < 10**11 else None
    if shape is None:
        return
    assert shape.hidden_size == hidden_size
    if shape.num_layers > 1:
        assert abs(shape.num_parameters - num_parameters) <= shape.num_parameters_per_block / 2


def test_given_heads_move_the_width_to_one_that_they_divide() -> None:
    shape = infer_shape(15 * 10**8, {"num_attention_heads": 25}).shape
    assert (shape.num_attention_heads, shape.hidden_size) == (25, 1600)
    assert shape.num_parameters == pytest.approx(15 * 10**8, rel=0.03)


def test_the_explanation_tells_the_family_the_count_and_the_way_out() -> None:
    inferred = infer_shape(45 * 10**9)
    lines = inferred.explanation.splitlines()
    assert len(lines) == 2
    assert "Megatron-LM 39.1B, arXiv:2104.04473" in lines[0]
    assert f"{inferred.shape.num_parameters:,}" in lines[0]
    assert "+0.31%" in lines[0]
    assert "num_layers" in lines[1]
    assert "model file" in lines[1]


def test_tiny_counts_give_tiny_shapes_or_say_what_is_possible() -> None:
    assert infer_shape(5_000_000).shape.hidden_size == 48
    assert infer_shape(200_000, {"vocab_size": 65, "max_position_embeddings": 64}).shape.hidden_size <= 128
    with pytest.raises(InputError, match=r"no GPT of 100,000 .* the nearest has 4,902,192 .* set vocab_size"):
        infer_shape(100_000)


@pytest.mark.parametrize(
    ("num_parameters", "given", "message"),
    [
        (0, {}, "num_parameters: 0 "),
        (-5, {}, "num_parameters: -5 "),
        (True, {}, "num_parameters: True "),
        (10**15, {}, "num_parameters: 1,000,000,000,000,000 "),
        (10**12, {"hidden_size": 64}, "hidden_size: 64 "),
        (10**9, {"hidden_sise": 64}, "unknown model field 'hidden_sise'; did you mean hidden_size"),
        (10**9, {"num_layers": 0}, "num_layers: 0 "),
        (10**9, {"hidden_size": "64"}, "hidden_size: '64' "),
        (10**9, {"hidden_size": 100, "num_attention_heads": 7}, "num_attention_heads: 7 heads do not divide"),
        (10**9, {"attention": "flash"}, "attention: unknown value 'flash'"),
        (10**9, {"activation": 3}, "activation: unknown value '3'"),
        (10**9, {"dropout": "0.1"}, "dropout: '0.1' "),
        (10**9, {"dropout": 1}, "dropout: 1 "),
        (10**9, {"tie_word_embeddings": "no"}, "tie_word_embeddings: 'no' "),
    ],
)
def test_what_cannot_be_inferred_says_why(num_parameters: int, given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        infer_shape(num_parameters, given)
    assert str(caught.value).startswith(message)


def test_names_are_spelled_as_in_the_model_file() -> None:
    assert infer_shape(10**9, {"attention": "EAGER"}).shape.has_mask_buffer
