"""What people name a model by: the Hugging Face Hub's names, a folder of PEFT's, a count without its suffix."""

from __future__ import annotations

from pathlib import Path

import pytest

from dsplan.catalogue import decoder_names, preset
from dsplan.cli.model_input import read_model_options
from dsplan.cli.options import ModelOptions
from dsplan.errors import InputError
from dsplan.hub_names import hub_names


def named(model: str) -> str:
    return read_model_options(ModelOptions(model=model)).shape.name


def test_every_decoder_has_the_name_of_its_source() -> None:
    assert sorted(hub_names().values()) == sorted(decoder_names())


@pytest.mark.parametrize(
    ("hub", "own"),
    [
        ("Qwen/Qwen2.5-7B", "qwen2.5-7b"),
        ("meta-llama/llama-3.1-8b", "llama-3.1-8b"),
        ("google/gemma-3-4b-pt", "gemma-3-4b"),
    ],
)
def test_a_name_of_the_hub_is_the_model_of_the_catalogue(hub: str, own: str) -> None:
    assert named(hub) == own
    assert read_model_options(ModelOptions(model=hub)).shape == preset(own)


def test_a_fine_tune_is_told_what_it_was_made_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"the Hub is not asked; did you mean llama-3\.1-8b"):
        named("meta-llama/Llama-3.1-8B-Instruct")
    with pytest.raises(InputError, match="the Hub is not asked; download its config"):
        named("qqqq/wwww")


@pytest.mark.parametrize("path", ["./mine", "models/mine.json", "/somewhere/mine", "a/b/c"])
def test_a_path_is_a_path(path: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="no such model file"):
        named(path)


def test_a_folder_of_that_name_wins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "Qwen" / "Qwen2.5-7B"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "mingpt", "n_layer": 1, "n_head": 1, "n_embd": 8}')
    assert read_model_options(ModelOptions(model="Qwen/Qwen2.5-7B")).shape.num_layers == 1


def test_an_adapter_s_folder_is_told_what_to_write(tmp_path: Path) -> None:
    file = tmp_path / "adapter_config.json"
    file.write_text(
        '{"r": 16, "base_model_name_or_path": "Qwen/Qwen2.5-7B", "target_modules": ["v_proj", "q_proj"]}', "utf-8"
    )
    said = "write --model Qwen/Qwen2.5-7B --lora-rank 16 --lora-targets q_proj,v_proj"
    for path in (tmp_path, file):
        with pytest.raises(InputError, match=f"holds an adapter of PEFT's and not a model; {said}"):
            named(str(path))
    file.write_text("[", "utf-8")
    with pytest.raises(InputError, match="write --model MODEL --lora-rank R"):
        named(str(tmp_path))
    # A model that has an adapter beside it is a model.
    (tmp_path / "config.json").write_text('{"model_type": "mingpt", "n_layer": 1, "n_head": 1, "n_embd": 8}')
    assert named(str(tmp_path)) == tmp_path.name


def test_a_count_without_its_suffix() -> None:
    with pytest.raises(InputError, match="--params: 7 is not allowed; at least 1,000; for billions write 7B"):
        read_model_options(ModelOptions(params="7"))
