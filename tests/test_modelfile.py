"""modelfile: a model file is read strictly, and every mistake is named with its place."""

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
from dsplan.modelfile import read_model, shape_from_config

MINIMAL = {"model_type": "mingpt", "n_layer": 2, "n_head": 2, "n_embd": 8}
SCHEMA = json.loads((Path(__file__).parents[1] / "schemas" / "model.schema.json").read_text(encoding="utf-8"))


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "model.json"
    path.write_text(text, encoding="utf-8")
    return path


def message(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        read_model(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_defaults_are_those_of_mingpt(tmp_path: Path) -> None:
    shape = read_model(write(tmp_path, json.dumps(MINIMAL)))
    assert shape == ModelShape(
        name="model",
        num_layers=2,
        num_attention_heads=2,
        hidden_size=8,
        vocab_size=50257,
        max_position_embeddings=1024,
        attention="eager",
        activation="gelu_new",
        dropout=0.1,
        tie_word_embeddings=False,
    )


def test_the_schema_states_the_same_defaults() -> None:
    config = shape_from_config(MINIMAL, where="test").to_config()
    stated = {key: value["default"] for key, value in SCHEMA["else"]["properties"].items() if "default" in value}
    assert stated == {key: config[key] for key in stated}
    assert set(SCHEMA["else"]["properties"]) - {"$schema"} == set(config)


def test_a_shape_comes_back_as_it_was_written(tmp_path: Path) -> None:
    shape = ModelShape(
        name="model",
        num_layers=3,
        hidden_size=48,
        num_attention_heads=3,
        vocab_size=65,
        max_position_embeddings=128,
        attention="sdpa",
        activation="gelu",
        dropout=0.0,
        tie_word_embeddings=True,
    )
    assert read_model(write(tmp_path, json.dumps(shape.to_config()))) == shape


def test_a_directory_means_its_config_json(tmp_path: Path) -> None:
    folder = tmp_path / "my-model"
    folder.mkdir()
    assert "config.json: no such model file" in message(folder)
    (folder / "config.json").write_text(json.dumps(MINIMAL), encoding="utf-8")
    assert read_model(folder).name == "my-model"
    assert read_model(str(folder / "config.json")).name == "my-model"


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert message(tmp_path / "nope.json") == f"{tmp_path / 'nope.json'}: no such model file"


def test_an_editor_may_name_the_schema(tmp_path: Path) -> None:
    assert read_model(write(tmp_path, json.dumps({"$schema": "model.schema.json", **MINIMAL}))).num_layers == 2


def test_a_byte_order_mark_is_no_mistake(tmp_path: Path) -> None:
    path = tmp_path / "model.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(MINIMAL).encode())
    assert read_model(path).num_layers == 2


def test_invalid_json_is_placed(tmp_path: Path) -> None:
    path = write(tmp_path, '{\n  "n_layer": 2,\n  "n_head" 2\n}')
    assert message(path).startswith(f"{path}: line 3, column 12: not valid JSON: ")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "line 1, column 1"),
        ("[1, 2]", "a model file is a JSON object, not [1, 2]"),
        ("null", "a model file is a JSON object, not null"),
        ('{"n_layer": 2, "n_layer": 3}', "key 'n_layer' is given twice: 2 and 3"),
        ('{"dropout": NaN}', "NaN is not allowed"),
        ("[" * 100_000, "nested too deeply"),
        ('{"n_layer": ' + "9" * 5000 + "}", "not valid JSON: a number in it is too long"),
    ],
)
def test_what_is_no_model_file(tmp_path: Path, text: str, said: str) -> None:
    path = write(tmp_path, text)
    assert message(path).startswith(f"{path}: {said}")


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "model.json"
    path.write_bytes(b'{"model_type": "\xff"}')
    assert "byte 16 is not UTF-8" in message(path)


BROKEN: list[tuple[dict[str, Any], str]] = [
    ({"n_layers": 2}, "unknown key 'n_layers'; did you mean n_layer"),
    ({"zzzz": 2}, "unknown key 'zzzz'; allowed: model_type, n_layer"),
    ({"n_layer": True}, "n_layer: true is not allowed; it must be an integer of at least 1"),
    ({"n_layer": 2.0}, "n_layer: 2.0 is not allowed"),
    ({"n_layer": "2"}, 'n_layer: "2" is not allowed'),
    ({"n_embd": 0}, "n_embd: 0 is not allowed"),
    ({"vocab_size": None}, "vocab_size: null is not allowed"),
    ({"block_size": [1024]}, "block_size: [1024] is not allowed"),
    ({"n_head": 3}, "n_head: 3 heads do not divide the width 8; nearest that do: 2 or 4"),
    ({"attention": "flash"}, 'attention: "flash" is not allowed; allowed: eager, sdpa'),
    ({"attention": "SDPA"}, 'attention: "SDPA" is not allowed; did you mean sdpa'),
    ({"attention": ["sdpa"]}, 'attention: ["sdpa"] is not allowed; allowed: eager, sdpa'),
    ({"activation": "gelu_old"}, 'activation: "gelu_old" is not allowed; did you mean'),
    ({"dropout": 1}, "dropout: 1 is not allowed; it must be a number of at least 0 and below 1"),
    ({"dropout": False}, "dropout: false is not allowed"),
    ({"dropout": "0.1"}, 'dropout: "0.1" is not allowed'),
    ({"tie_word_embeddings": 1}, "tie_word_embeddings: 1 is not allowed; it must be true or false"),
    # A model of another family has other keys too; the type is what is said.
    ({"model_type": "gpt22", "n_positions": 4}, "model_type: 'gpt22' is not a family that dsplan knows; nearest: gpt2"),
]


@pytest.mark.parametrize(("changes", "said"), BROKEN)
def test_mistakes_name_the_key_the_value_and_what_is_allowed(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    path = write(tmp_path, json.dumps({**MINIMAL, **changes}))
    assert message(path).startswith(f"{path}: {said}")


@pytest.mark.parametrize("key", MINIMAL)
def test_required_keys(tmp_path: Path, key: str) -> None:
    config = {name: value for name, value in MINIMAL.items() if name != key}
    path = write(tmp_path, json.dumps(config))
    assert message(path) == f"{path}: {key} missing; required: model_type, n_layer, n_head, n_embd"


values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 64),
    st.floats(-1, 2),
    st.sampled_from(["mingpt", "eager", "sdpa", "gelu"]),
)


@given(st.dictionaries(st.sampled_from([*SCHEMA["else"]["properties"], "colour"]), values))
def test_the_reader_accepts_what_the_schema_accepts(changes: dict[str, Any]) -> None:
    config = {**MINIMAL, **changes}
    config.pop("$schema", None)
    # JSON Schema calls 2.0 an integer and cannot divide; the reader does neither.
    strict = not any(isinstance(value, float) and key != "dropout" for key, value in config.items())
    valid = jsonschema.Draft202012Validator(SCHEMA).is_valid(config) and strict
    divides = valid and config["n_embd"] % config["n_head"] == 0
    try:
        shape_from_config(config, where="test")
    except InputError:
        assert not divides
    else:
        assert divides


def test_nothing_but_input_errors_for_a_file_that_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, json.dumps(MINIMAL))

    def refuse(*args: Any, **kwargs: Any) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    assert message(path) == f"{path}: cannot be read: Permission denied"


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"architectures": ["LlamaForCausalLM"], "hidden_size": 64}, "model_type is missing; allowed: mingpt, gpt2"),
        ({"train_batch_size": 8, "zero_optimization": {"stage": 2}}, "is a DeepSpeed configuration and not a model"),
    ],
)
def test_a_file_of_another_kind_is_called_what_it_is(config: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        shape_from_config(config, where="x.json")
