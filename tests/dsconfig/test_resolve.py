"""What the frameworks fill in: by rule, and against their own code."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dsplan.check.rules import auto as auto_rule
from dsplan.dsconfig.auto import every_auto
from dsplan.dsconfig.consumers import ACCELERATE, DEEPSPEED, HF, LIGHTNING
from dsplan.dsconfig.edit import set_key
from dsplan.dsconfig.not_modelled import lookup
from dsplan.dsconfig.read import read_ds_config
from dsplan.dsconfig.resolve import Filled, Script, resolve
from dsplan.errors import InputError
from dsplan.model import ModelShape

VALID = Path(__file__).parents[1] / "data" / "configs" / "valid"
MODEL = ModelShape(name="wide", num_layers=2, hidden_size=1537, num_attention_heads=1)
WORLD = 4
#: Sizes that no default has, so that a value that is not passed on shows.
GIVEN = Script(model=MODEL, micro_batch_size=3, gradient_accumulation_steps=5, precision="bf16", training_steps=77)
NOTHING = Script(model=MODEL, training_steps=77)


def document(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((VALID / name).read_text(encoding="utf-8"))
    return loaded


def for_accelerate(name: str) -> dict[str, Any]:
    """``name`` without the two keys that accelerate has no value for."""
    changed = document(name)
    for key in ("betas", "eps"):
        del changed["optimizer"]["params"][key]
    return changed


# Against the frameworks themselves.

_TRANSFORMERS = """
import dataclasses, json, sys
from types import SimpleNamespace
from transformers import TrainingArguments
from accelerate.utils import DeepSpeedPlugin
from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig
names = {field.name: field for field in dataclasses.fields(TrainingArguments)}
values = {name: None if field.default is dataclasses.MISSING else field.default for name, field in names.items()}
for given, config in json.load(sys.stdin):
    args = SimpleNamespace(**{**values, **given["arguments"]}, world_size=given["world_size"])
    args.get_warmup_steps = lambda steps: TrainingArguments.get_warmup_steps(args, steps)
    made = HfTrainerDeepSpeedConfig(config)
    made.trainer_config_process(args)
    if given["plugin"]:  # as TrainingArguments.__post_init__ and the Trainer's Accelerator do
        DeepSpeedPlugin(hf_ds_config=made).set_mixed_precision(given["plugin"])
    model = SimpleNamespace(config=SimpleNamespace(hidden_size=given["hidden_size"]))
    made.trainer_config_finalize(args, model, given["steps"])
    made.config.pop("steps_per_print", None)  # infinity
    print("answer:", json.dumps(made.config))
"""

#: ``_prepare_deepspeed`` up to the engine, which stands in for DeepSpeed's and keeps the configuration.
_ACCELERATE = """
import json, sys
from types import SimpleNamespace
import deepspeed, torch
from accelerate import Accelerator
from accelerate.utils import DeepSpeedPlugin, DummyOptim, DummyScheduler
class Stop(Exception): pass
kept = {}
def initialize(**arguments):
    kept.clear()
    kept.update(arguments["config_params"])
    raise Stop
deepspeed.initialize = initialize
for given, config in json.load(sys.stdin):
    plugin = DeepSpeedPlugin(hf_ds_config=config)
    plugin.set_mixed_precision(given["mixed_precision"])
    model = torch.nn.Linear(2, 2)
    model.config = SimpleNamespace(hidden_size=given["hidden_size"])
    optimizer = DummyOptim(model.parameters())
    scheduler = DummyScheduler(optimizer, total_num_steps=given["steps"] * given["world_size"])
    loader = torch.utils.data.DataLoader(torch.zeros(8, 2), **given["loader"])
    engine = SimpleNamespace(
        fp8_backend=None, parallelism_config=None, split_batches=False, deepspeed_plugin=plugin,
        num_processes=given["world_size"], gradient_accumulation_steps=given["gradient_accumulation_steps"],
        device=torch.device("cpu"), _prepare_one=lambda obj, **_: obj,
    )
    try:
        Accelerator._prepare_deepspeed(engine, loader, model, optimizer, scheduler)
    except Stop:
        kept["steps_per_print"] = None  # infinity, so that DeepSpeed does not log
        print("answer:", json.dumps(kept))
    except ValueError as error:
        print("answer:", json.dumps({"refused": str(error)}))
"""

Case = tuple[dict[str, Any], Script]


def ask(program: str, cases: list[tuple[dict[str, Any], dict[str, Any]]]) -> list[dict[str, Any]]:
    """What a framework makes of (arguments, configuration), all in one process, since importing it takes seconds."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        input=json.dumps(cases),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answers = [line.partition(": ")[2] for line in done.stdout.splitlines() if line.startswith("answer: ")]
    assert len(answers) == len(cases)
    return [json.loads(answer) for answer in answers]


def transformers_says(cases: list[Case], *, plugin: bool = False) -> list[dict[str, Any]]:
    def given(script: Script) -> dict[str, Any]:
        arguments: dict[str, Any] = {}
        if script.micro_batch_size is not None:
            arguments["per_device_train_batch_size"] = script.micro_batch_size
            arguments["gradient_accumulation_steps"] = script.gradient_accumulation_steps
        if script.precision is not None:
            arguments[script.precision] = True
        return {
            "arguments": arguments,
            "world_size": WORLD,
            "hidden_size": MODEL.hidden_size,
            "steps": script.training_steps,
            "plugin": (script.precision or "no") if plugin else None,
        }

    return ask(_TRANSFORMERS, [(given(script), config) for config, script in cases])


def accelerate_says(cases: list[Case]) -> list[dict[str, Any]]:
    def given(script: Script) -> dict[str, Any]:
        return {
            "mixed_precision": script.precision or "no",
            "world_size": WORLD,
            "hidden_size": MODEL.hidden_size,
            "steps": script.training_steps,
            "gradient_accumulation_steps": script.gradient_accumulation_steps or 1,
            "loader": {"batch_size": script.micro_batch_size} if script.micro_batch_size else {},
        }

    return ask(_ACCELERATE, [(given(script), config) for config, script in cases])


@pytest.mark.engine
def test_as_transformers_own_class() -> None:
    names, scripts = ("hf_zero2.json", "hf_zero3.json"), (GIVEN, NOTHING)
    cases = [(document(name), script) for name in names for script in scripts]
    for (config, script), theirs in zip(cases, transformers_says(cases), strict=True):
        autos = every_auto(config)
        ours, filled = resolve(config, HF, script, WORLD)
        assert len(autos) > 10
        assert {item.key for item in filled} == set(autos)
        for key in autos:
            assert lookup(ours, key) == lookup(theirs, key), key
        ours.pop("steps_per_print", None)
        assert ours == theirs  # and nothing else was changed


@pytest.mark.engine
def test_the_trainer_goes_through_accelerates_plugin() -> None:
    """Which fills in the stage, the precision that has no section, and one accumulation step."""
    config = document("hf_zero3.json")
    config["zero_optimization"].update(stage="auto", offload_param={"device": "auto"})
    del config["gradient_accumulation_steps"], config["bf16"]
    script = replace(GIVEN, gradient_accumulation_steps=1)
    [theirs] = transformers_says([(config, script)], plugin=True)
    ours, _ = resolve(config, HF, script, WORLD)
    assert theirs.pop("fp16") == {"enabled": False}
    for key in ("stage3_prefetch_bucket_size", "stage3_param_persistence_threshold"):
        # Stage 2 by now: the Trainer leaves them to _prepare_deepspeed.
        assert theirs["zero_optimization"].pop(key) == "auto"
        assert isinstance(ours["zero_optimization"].pop(key), int)
    assert ours == theirs
    assert (ours["zero_optimization"]["stage"], ours["gradient_accumulation_steps"]) == (2, 1)
    assert ours["bf16"] == {"enabled": True}


@pytest.mark.engine
def test_as_accelerates_own_code() -> None:
    names, scripts = ("hf_zero2.json", "hf_zero3.json"), (GIVEN, NOTHING)
    cases = [(for_accelerate(name), script) for name in names for script in scripts]
    for (config, script), theirs in zip(cases, accelerate_says(cases), strict=True):
        autos = every_auto(config)
        ours, _ = resolve(config, ACCELERATE, script, WORLD)
        assert len(autos) > 8
        for key in autos:
            assert lookup(ours, key) == lookup(theirs, key), key
        # What accelerate adds beside changes nothing: a precision that is off, and no logging.
        added = {key: theirs.pop(key) for key in list(theirs) if key not in ours}
        assert added.pop("fp16", None) in (None, {"enabled": False})
        assert set(added) <= {"steps_per_print"}
        theirs.pop("steps_per_print", None)
        ours.pop("steps_per_print", None)
        assert ours == theirs


@pytest.mark.engine
def test_what_accelerate_stops_at_and_what_only_its_plugin_knows() -> None:
    base = for_accelerate("hf_zero3.json")
    stops = {
        "optimizer.params.betas": {"optimizer": {"type": "AdamW", "params": {"betas": "auto"}}},
        "zero_optimization.sub_group_size": {"zero_optimization": {"stage": 3, "sub_group_size": "auto"}},
        "train_batch_size": {"train_batch_size": "auto", "train_micro_batch_size_per_gpu": None},
    }
    fills = for_accelerate("hf_zero3.json")
    fills["zero_optimization"].update(
        stage="auto", offload_optimizer={"device": "auto"}, stage3_gather_16bit_weights_on_model_save="auto"
    )
    del fills["gradient_accumulation_steps"]
    script = replace(GIVEN, gradient_accumulation_steps=1)
    cases = [({**base, **change}, script) for change in stops.values()]
    *refused, filled = accelerate_says([*cases, (fills, script)])
    for key, (config, _), theirs in zip(stops, cases, refused, strict=True):
        assert key in theirs["refused"]
        with pytest.raises(InputError, match=rf'"auto" in {key}: accelerate has no value for it'):
            resolve(config, ACCELERATE, script, WORLD)
    ours, _ = resolve(fills, ACCELERATE, script, WORLD)
    assert ours["zero_optimization"] == filled["zero_optimization"]
    assert ours["zero_optimization"]["stage"] == 2
    assert ours["gradient_accumulation_steps"] == filled["gradient_accumulation_steps"] == 1
    assert ours["train_batch_size"] == filled["train_batch_size"] == 3 * WORLD


# By rule.


@pytest.mark.parametrize("consumer", [HF, ACCELERATE])
def test_what_check_calls_filled_in_is(consumer: str) -> None:
    for key in auto_rule._FILLED[consumer]:
        config: dict[str, Any] = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 3}}
        set_key(config, key, "auto")
        resolved, filled = resolve(config, consumer, GIVEN, WORLD)
        assert every_auto(resolved) == []
        assert key in {item.key for item in filled}


def test_the_trainers_values() -> None:
    resolved, filled = resolve(document("hf_zero3.json"), HF, GIVEN, WORLD)
    zero = resolved["zero_optimization"]
    assert zero["reduce_bucket_size"] == 1537 * 1537
    assert zero["stage3_prefetch_bucket_size"] == 2126132  # 0.9 x 1537^2 = 2126132.1
    assert zero["stage3_param_persistence_threshold"] == 15370
    assert (resolved["train_micro_batch_size_per_gpu"], resolved["gradient_accumulation_steps"]) == (3, 5)
    assert resolved["train_batch_size"] == 60
    assert resolved["bf16"] == {"enabled": True}
    assert resolved["scheduler"]["params"]["total_num_steps"] == 77
    shown = {item.key: str(item) for item in filled}
    assert shown["zero_optimization.reduce_bucket_size"] == (
        "zero_optimization.reduce_bucket_size: auto -> 2,362,369 (hidden size squared), as transformers does"
    )
    assert shown["train_micro_batch_size_per_gpu"].endswith("auto -> 3 (--micro-batch-size), as transformers does")


def test_without_arguments_the_frameworks_own_defaults_stand() -> None:
    trainer, filled = resolve(document("hf_zero2.json"), HF, NOTHING, WORLD)
    assert (trainer["train_micro_batch_size_per_gpu"], trainer["train_batch_size"]) == (8, 32)
    assert trainer["fp16"]["enabled"] is trainer["bf16"]["enabled"] is False
    [micro] = [item for item in filled if item.key == "train_micro_batch_size_per_gpu"]
    assert "default of TrainingArguments.per_device_train_batch_size; --micro-batch-size gives another" in str(micro)
    assert resolve(for_accelerate("hf_zero2.json"), ACCELERATE, NOTHING, WORLD)[0]["train_batch_size"] == WORLD


def test_the_file_is_left_as_it_is() -> None:
    before = document("hf_zero3.json")
    resolve(before, HF, GIVEN, WORLD)
    assert before == document("hf_zero3.json")


def test_values_of_the_file_stand() -> None:
    config = {**document("hf_zero2.json"), "train_micro_batch_size_per_gpu": 2, "gradient_clipping": 0.3}
    resolved, filled = resolve(config, HF, NOTHING, WORLD)
    assert (resolved["train_micro_batch_size_per_gpu"], resolved["train_batch_size"]) == (2, 8)
    assert resolved["gradient_clipping"] == 0.3
    assert "gradient_clipping" not in {item.key for item in filled}


def test_below_stage_3_accelerate_fills_what_the_trainer_leaves() -> None:
    config = document("hf_zero2.json")
    config["zero_optimization"]["stage3_prefetch_bucket_size"] = "auto"
    resolved, filled = resolve(config, HF, GIVEN, WORLD)
    assert resolved["zero_optimization"]["stage3_prefetch_bucket_size"] == 2126132
    assert [item.by for item in filled if item.key.endswith("prefetch_bucket_size")] == ["accelerate"]


@pytest.mark.parametrize("consumer", [HF, ACCELERATE])
def test_mixed_precision_adds_the_section(consumer: str) -> None:
    config = {"train_micro_batch_size_per_gpu": 1, "optimizer": {"type": "Adam"}, "zero_optimization": {"stage": 1}}
    resolved, filled = resolve(config, consumer, GIVEN, WORLD)
    assert resolved["bf16"] == {"enabled": True}
    assert (
        Filled(key="bf16", before=None, value={"enabled": True}, why="mixed_precision of --precision", by="accelerate")
        in filled
    )


def test_the_frameworks_optimizer_is_let_through() -> None:
    config = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 1}}
    for consumer in (HF, ACCELERATE):
        assert resolve(config, consumer, GIVEN, WORLD)[0]["zero_allow_untested_optimizer"] is True
    assert "zero_allow_untested_optimizer" not in resolve(config, LIGHTNING, GIVEN, WORLD)[0]


def test_lightning_fills_in_what_is_not_there_and_no_auto() -> None:
    config = {"optimizer": {"type": "AdamW"}, "zero_optimization": {"stage": 2}}
    resolved, _ = resolve(config, LIGHTNING, GIVEN, WORLD)
    assert resolved == {
        **config,
        "gradient_accumulation_steps": 5,
        "train_micro_batch_size_per_gpu": 3,
        "gradient_clipping": 0.0,
        "bf16": {"enabled": True},
    }
    with pytest.raises(InputError, match="Lightning does not fill it in"):
        resolve({"zero_optimization": {"reduce_bucket_size": "auto"}}, LIGHTNING, GIVEN, WORLD)
    with pytest.raises(InputError, match="gradient_accumulation_steps: Lightning refuses"):
        resolve({"gradient_accumulation_steps": 1}, LIGHTNING, GIVEN, WORLD)


@pytest.mark.parametrize(
    ("config", "consumer", "script", "said"),
    [
        ({"fp16": {"enabled": "auto"}}, DEEPSPEED, GIVEN, r'"auto" in fp16\.enabled: .*--for \(hf, accelerate\)'),
        ({"train_batch_size": 1}, HF, GIVEN, "zero_optimization: the section is missing"),
        ({"zero_optimization": True}, ACCELERATE, GIVEN, "zero_optimization: the section is missing"),
        ({"zero_optimization": {"reduce_bucket_size": "auto"}}, HF, Script(), "name the model"),
        ({"zero_optimization": {}, "wandb": {"team": "auto"}}, HF, GIVEN, "auto.* in wandb.team: Hugging Face"),
        ({}, "hfs", GIVEN, "--for: unknown value 'hfs'; did you mean hf"),
    ],
)
def test_what_is_refused(config: dict[str, Any], consumer: str, script: Script, said: str) -> None:
    with pytest.raises(InputError, match=said):
        resolve(config, consumer, script, WORLD)


# Through the reader.


@pytest.mark.parametrize(("consumer", "micro", "precision"), [(HF, 8, "fp32"), (HF, 3, "bf16")])
def test_a_file_is_read_as_the_trainer_runs_it(consumer: str, micro: int, precision: str) -> None:
    script = NOTHING if micro == 8 else GIVEN
    found = read_ds_config(VALID / "hf_zero3.json", world_size=WORLD, consumer=consumer, script=script)
    assert found.plan.zero.reduce_bucket_size == 1537 * 1537
    assert found.plan.zero.stage3_param_persistence_threshold == 15370
    assert (found.plan.workload.micro_batch_size, found.plan.workload.precision) == (micro, precision)
    assert found.consumer == HF
    assert every_auto(found.document) == []
    assert len(found.inferred) == len(every_auto(document("hf_zero3.json")))
    assert found.overrides == ()


def test_an_auto_without_a_consumer_names_the_option() -> None:
    with pytest.raises(InputError, match=r'hf_zero2.json: "auto" in fp16.enabled.*--for \(hf, accelerate\)'):
        read_ds_config(VALID / "hf_zero2.json", world_size=WORLD)


def test_flags_in_place_of_the_file_are_shown(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(
        json.dumps({"train_batch_size": 64, "train_micro_batch_size_per_gpu": 4, "zero_optimization": {"stage": 1}})
    )
    found = read_ds_config(path, world_size=8, micro_batch_size=2, optimizer="adamw")
    assert [str(item) for item in found.overrides] == [
        "train_micro_batch_size_per_gpu: 4 -> 2 (in place of the file's), by --micro-batch-size",
        "train_batch_size: 64 -> 16 (computed anew), by --micro-batch-size",
        'optimizer: not given -> "adamw" (the script passes it), by --optimizer',
    ]
    same = read_ds_config(path, world_size=8, optimizer="adamw", micro_batch_size=4)
    assert [item.key for item in same.overrides] == ["train_batch_size", "optimizer"]
