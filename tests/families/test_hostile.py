"""Configurations that are broken or hostile are refused in one line, at once and with little memory."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsplan.catalogue import preset
from dsplan.errors import InputError
from dsplan.families import FAMILIES
from dsplan.modelfile import LARGEST_FILE, changed, read_model, shape_from_config
from tests.families.shapes import SMALL

LLAMA = {**SMALL["llama with biases"]}
LONGEST_S = 0.1
MIB = 2**20


def refused(config: dict[str, Any]) -> str:
    begun = time.process_time()
    with pytest.raises(InputError) as caught:
        shape_from_config(config, where="config.json")
    assert time.process_time() - begun < LONGEST_S
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 700
    return message


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_hidden_layers": None}, "config.json: num_hidden_layers is missing; a llama configuration needs it"),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"vocab_size": None}, "vocab_size is missing"),
        ({"num_hidden_layers": "32"}, 'num_hidden_layers: "32" is not allowed; it must be an integer of 1 to 10,000'),
        ({"num_hidden_layers": 10**30}, "num_hidden_layers: 1000000000000000000000000000000 is not allowed"),
        ({"num_hidden_layers": 10**3000}, "num_hidden_layers: an integer of 9966 bits is not allowed"),
        ({"num_hidden_layers": 1e30}, "num_hidden_layers: 1e+30 is not allowed"),
        ({"num_hidden_layers": 10_001}, "num_hidden_layers: 10001 is not allowed"),
        ({"num_hidden_layers": True}, "num_hidden_layers: true is not allowed"),
        ({"num_hidden_layers": [32] * 1000}, "num_hidden_layers: a list of 1000 is not allowed"),
        ({"hidden_size": -4096}, "hidden_size: -4096 is not allowed"),
        ({"hidden_size": 255}, "num_attention_heads: 8 heads do not divide the hidden_size of 255"),
        ({"num_key_value_heads": 3}, "num_key_value_heads: 3 do not divide the 8 heads"),
        ({"num_attention_heads": 10**6, "head_dim": 1}, "num_attention_heads: 1000000 is not allowed"),
        ({"hidden_act": "silly"}, "hidden_act: unknown value 'silly'; did you mean silu?"),
        ({"hidden_act": "s" * 10**6}, "hidden_act: unknown value"),
        ({"attention_bias": "yes"}, 'attention_bias: "yes" is not allowed; it must be true or false'),
        ({"attention_dropout": 1.5}, "attention_dropout: 1.5 is not allowed"),
        ({"attn_implementation": "flush"}, 'attn_implementation: "flush" is not allowed; a llama has eager, sdpa'),
        ({"quantization_config": {"bits": 4}}, "quantization_config: quantized weights are not trained"),
        ({"model_type": 5}, "model_type: 5 is not allowed"),
        ({"model_type": "x" * 10**6}, "is not a family that dsplan knows"),
    ],
)
def test_what_is_wrong_is_named(changes: dict[str, Any], said: str) -> None:
    assert said in refused({**LLAMA, **changes})


@pytest.mark.parametrize(
    ("model_type", "near"),
    [
        ("llama4", "llama"),
        ("mistral3", "mistral"),
        ("qwen2_5", "qwen2"),
        ("gptneox", "gpt_neox"),
        ("deepseek", "deepseek_v"),
    ],
)
def test_an_unknown_family_is_told_the_nearest_and_the_way_around(model_type: str, near: str) -> None:
    message = refused({**LLAMA, "model_type": model_type})
    assert f"nearest: {near}" in message
    assert "--module PACKAGE.FILE:FACTORY" in message


def test_of_many_layers_the_one_that_is_of_no_kind_is_named() -> None:
    layers = ["full_attention"] * (LLAMA["num_hidden_layers"] - 1)
    message = refused({**LLAMA, "model_type": "qwen2", "layer_types": [*layers, "full_atention"]})
    assert 'layer_types: "full_atention" is not allowed; it must be one of full_attention' in message


def test_experts_that_are_not_there() -> None:
    config = {**SMALL["mixtral, wide heads"], "num_experts_per_tok": 9}
    assert "num_experts_per_tok: 9 is not allowed; there are 4 experts" in refused(config)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_nothing_but_a_type_is_too_little(model_type: str) -> None:
    assert "is missing" in refused({"model_type": model_type})


values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(SMALL)), st.data())
def test_no_value_of_any_key_does_worse_than_an_input_error(name: str, data: st.DataObject) -> None:
    config = dict(SMALL[name])
    for key in data.draw(st.lists(st.sampled_from(sorted(config)), max_size=3, unique=True)):
        config[key] = data.draw(values)
    said = ""
    try:
        shape = shape_from_config(config, where="config.json")
        assert shape.num_parameters == sum(parameter.numel for parameter in shape.parameters)
    except InputError as error:
        said = str(error)
    assert "\n" not in said


def test_files_that_are_large_or_deep(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    text = json.dumps(LLAMA)[:-1]
    for content, said in (
        (text + ', "x": ' + "[" * 100_000, "nested too deeply"),
        (text + ', "x": ' + '{"a":' * 50_000, "nested too deeply"),
        (text + ', "x": "' + "y" * LARGEST_FILE + '"}', "is too large for a model file"),
        (text + ', "num_hidden_layers": 4}', "key 'num_hidden_layers' is given twice"),
        (text, "not valid JSON"),
    ):
        file.write_text(content, encoding="utf-8")
        with pytest.raises(InputError) as caught:
            read_model(file)
        assert said in str(caught.value)
        assert "\n" not in str(caught.value)
    file.write_text(text + ', "x": ' + "[" * 500 + "]" * 500 + "}", encoding="utf-8")
    assert "x" not in read_model(file).to_config()  # what is nested deep is nothing that a decoder reads


def test_the_largest_shapes_that_are_read_take_little_memory() -> None:
    """In a process of its own: what the interpreter, and the tests before, have taken already is not counted."""
    code = (
        "import resource, time\n"
        "from dsplan.modelfile import shape_from_config\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "begun = time.process_time()\n"
        "config = {'model_type': 'stablelm', 'num_hidden_layers': 10_000, 'hidden_size': 8192,\n"
        "          'intermediate_size': 64, 'num_attention_heads': 4096, 'num_key_value_heads': 4096,\n"
        "          'vocab_size': 10_000_000,\n"
        "          'qk_layernorm': True}\n"
        "shape = shape_from_config(config, where='x')\n"
        "assert shape.num_parameters > 10**12\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, time.process_time() - begun)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    kib, seconds = done.stdout.split()
    assert int(kib) * 1024 < 200 * MIB
    assert float(seconds) < 10 * LONGEST_S  # 0.1 s of a quiet machine
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > 0


def test_what_is_changed_is_changed_in_the_configuration() -> None:
    shape = preset("llama-3.2-1b")
    deeper = changed(shape, {"num_layers": 20, "tie_word_embeddings": False, "attention": "eager"})
    assert (deeper.num_layers, deeper.tie_word_embeddings, deeper.attention) == (20, False, "eager")
    assert deeper.name == "llama-3.2-1b, changed"
    assert deeper.to_config()["num_hidden_layers"] == 20
    assert len(deeper.parameters) == len(shape.parameters) + 4 * 9 + 1
    with pytest.raises(InputError, match="activation: the configuration of a llama says it"):
        changed(shape, {"activation": "gelu"})
    with pytest.raises(InputError, match=r"num_attention_heads: 7|num_key_value_heads"):
        changed(shape, {"num_attention_heads": 7})
    small = changed(preset("gpt2-hf"), {"num_layers": 2, "max_position_embeddings": 64, "dropout": 0.0})
    assert (small.num_layers, small.max_position_embeddings, small.dropout) == (2, 64, 0.0)


def test_the_text_decoder_of_a_model_that_sees() -> None:
    text = {"hidden_size": 640, "num_hidden_layers": 2, "intermediate_size": 96, "model_type": "gemma3_text"}
    shape = shape_from_config({"model_type": "gemma3", "text_config": text, "vision_config": {}}, where="x")
    assert shape.model_type == "gemma3_text"
    assert shape.parameters == shape_from_config(text, where="x").parameters
