"""What is trained: adapters, frozen layers, and modules of one's own."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dsplan import api
from dsplan.errors import InputError
from dsplan.live_module import read_module
from dsplan.model import ModelShape
from dsplan.modelfile import read_model, shape_from_config
from runner.meta import factory_of
from tests.families.compared import dry, error_percent, predicted, rank_of
from tests.families.dry import outcomes
from tests.families.grid import MODELS, Setting

#: How far a peak may be off that of a dry run: 1 MiB that a block keeps, of models of three layers.
CLOSE_PERCENT = 0.3

NET = """
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(50, 8)
        self.hidden = nn.Linear(8, 16)
        self.head = nn.Linear(16, 50, bias=False)
        self.embedding.requires_grad_(False)

def make():
    print("what is printed is no answer")
    return Net()

def frozen():
    return Net().requires_grad_(False)

def empty():
    return nn.ReLU()

def fails():
    raise RuntimeError("no way\\nat all")
"""


def test_lora_trains_two_small_matrices_for_each_target() -> None:
    whole, lora = api.model("llama-3.2-1b"), api.model("llama-3.2-1b", lora_rank=16, lora_targets=["q_proj", "v_proj"])
    # r(n_in + n_out) for q (2048, 2048) and v (2048, 512), in 16 layers
    assert lora.num_trained_parameters == 16 * 16 * (2048 + 2048 + 2048 + 512)
    assert lora.num_parameters == whole.num_parameters + lora.num_trained_parameters
    assert lora.to_config()["dsplan"] == {"lora_rank": 16, "lora_targets": ["q_proj", "v_proj"]}
    assert shape_from_config(lora.to_config(), where="again", name=lora.name) == lora
    assert lora != whole


def test_frozen_layers_are_the_first_and_what_comes_before_them() -> None:
    shape = api.model("llama-3.2-1b", frozen_layers=4)
    frozen = {parameter.name for parameter in shape.parameters if not parameter.trained}
    assert "model.embed_tokens.weight" in frozen
    assert "model.layers.3.mlp.up_proj.weight" in frozen
    assert not any(name.startswith("model.layers.4.") or name == "model.norm.weight" for name in frozen)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"lora_rank": 0}, "lora_rank: 0 is not allowed"),
        ({"lora_rank": 10**30}, "lora_rank: "),
        ({"lora_rank": 8, "lora_targets": ["k_prj"]}, 'unknown value "k_prj"; did you mean k_proj'),
        ({"lora_rank": 8, "lora_targets": []}, "lora_targets: none given"),
        ({"lora_targets": ["q_proj"]}, "lora_rank: missing"),
        ({"frozen_layers": 17}, "of 16 layers it must be 1 to 16"),
        ({"frozen_layers": 2, "lora_rank": 8}, "with LoRA every layer is frozen"),
    ],
)
def test_what_cannot_be_trained_so(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as caught:
        api.model("llama-3.2-1b", **changes)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_model_of_which_nothing_would_be_trained_is_refused() -> None:
    # OPT's last norm is made before its blocks (modeling_opt.py, OPTDecoder), and its head is the embedding.
    with pytest.raises(InputError, match=r"frozen_layers: 12 is not allowed; nothing comes after .*: at most 11"):
        api.model("opt-125m", frozen_layers=12)
    assert api.model("opt-125m", frozen_layers=11).num_trained_parameters > 0
    assert api.model("llama-3.2-1b", frozen_layers=16).num_trained_parameters == 2048  # the last norm


def test_a_mingpt_has_no_adapters() -> None:
    with pytest.raises(InputError, match="only a decoder of transformers' has them"):
        api.model("gpt2", lora_rank=8)


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("stage", [2, 3])
def test_formulas_plan_adapters_of_every_family(family: str, stage: int) -> None:
    whole = Setting(family=family, stage=stage, sequence_length=64)
    adapted = replace(whole, variant="adapters everywhere")
    trained = adapted.model.num_trained_parameters
    assert 0 < trained < whole.model.num_parameters // 4
    assert predicted(adapted).steps < predicted(whole).steps


IN_DRY_RUNS = [
    Setting(family="Llama 3", stage=3, sequence_length=500, variant="adapters everywhere"),
    Setting(family="GPT-2", stage=3, sequence_length=500, variant="adapters everywhere", checkpointing="torch"),
    Setting(family="Qwen 3", stage=3, sequence_length=500, variant="adapters of q and v", checkpointing="deepspeed"),
]


@pytest.mark.engine
def test_adapters_and_frozen_layers_come_out_as_in_dry_runs() -> None:
    settings: dict[str, Setting] = {setting.name: setting for setting in IN_DRY_RUNS}
    for name, record in outcomes({name: setting.spec(rank_of(setting)) for name, setting in settings.items()}):
        assert not isinstance(record, str), f"{name}: {record}"
        assert record["num_parameters"] == settings[name].model.num_parameters
        assert abs(error_percent(predicted(settings[name]), dry(record))) <= CLOSE_PERCENT, name


def tensor(*sizes: int, trained: bool = True) -> Any:
    return SimpleNamespace(shape=sizes, requires_grad=trained)


def test_a_module_is_its_parameters(tmp_path: Path) -> None:
    named = [("embedding.weight", tensor(50, 8, trained=False)), ("head.weight", tensor(16, 8)), ("scale", tensor())]
    module = SimpleNamespace(named_parameters=lambda: iter(named))
    shape = ModelShape.from_module(module, name="mine")
    assert [(each.name, each.shape, each.trained) for each in shape.parameters] == [
        ("embedding.weight", (50, 8), False),
        ("head.weight", (16, 8), True),
        ("scale", (), True),
    ]
    assert (shape.num_parameters, shape.num_trained_parameters) == (50 * 8 + 16 * 8 + 1, 16 * 8 + 1)
    assert (shape.hidden_size, shape.vocab_size) == (8, 50)
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(shape.to_config()), encoding="utf-8")
    assert read_model(file).parameters == shape.parameters


@pytest.mark.parametrize("listed", [None, [], [1], [["a"]], [["a", [1.5], True]], [["a", [-1], True]], [["a", [1], 1]]])
def test_a_list_of_parameters_that_is_none(listed: Any) -> None:
    config = {"model_type": "module", "hidden_size": 8, "vocab_size": 50, "parameters": listed}
    with pytest.raises(InputError, match=r"parameters: .* is not allowed; it must be a list of"):
        shape_from_config(config, where="x")


@pytest.mark.engine
def test_a_factory_is_called_on_the_meta_device(tmp_path: Path) -> None:
    package = tmp_path / "mine"
    package.mkdir()
    (package / "net.py").write_text(NET, encoding="utf-8")
    shape = read_module("mine.net:make", folder=tmp_path)
    assert [(each.name, each.trained) for each in shape.parameters] == [
        ("embedding.weight", False),
        ("hidden.weight", True),
        ("hidden.bias", True),
        ("head.weight", True),
    ]
    assert shape.to_config()["folder"] == str(tmp_path)
    with pytest.raises(InputError) as caught:
        read_module("mine.net:fails", folder=tmp_path)
    assert str(caught.value) == "--module: mine.net:fails failed: RuntimeError: no way"
    for name, said in (("frozen", "no parameter of it is trained"), ("empty", "it has no parameters")):
        with pytest.raises(InputError, match=rf"--module: mine\.net:{name} makes nothing to train: {said}"):
            read_module(f"mine.net:{name}", folder=tmp_path)


@pytest.mark.parametrize(
    ("factory", "said"),
    [
        ("mine.py:make", "write mine:make"),
        ("./my/net.py:make", "write my.net:make"),
        ("/home/me/net.py:make", "in its folder write net:make"),
        ("../net.py:make", "in its folder write net:make"),
        ("my-files/net.py:make", "in its folder write net:make"),
    ],
)
def test_a_path_is_told_how_python_names_it(factory: str, said: str) -> None:
    with pytest.raises(InputError, match="names a file; ") as caught:
        read_module(factory)
    assert str(caught.value).endswith(said)


@pytest.mark.parametrize(
    ("factory", "said"),
    [
        ("tests.families.shapes:SMALL", "tests.families.shapes has no function SMALL"),
        ("tests.families.nothing:make", "there is no module tests.families.nothing here"),
        ("tests.families.shapes", "it must be PACKAGE.FILE:FACTORY"),
        (":make", "it must be PACKAGE.FILE:FACTORY"),
    ],
)
def test_a_factory_that_is_not_there(factory: str, said: str) -> None:
    with pytest.raises(ValueError, match=r"^--module") as caught:
        factory_of(factory)
    assert said in str(caught.value)
