"""Against DeepSpeed itself: it takes what dsplan emits, reads what dsplan reads, knows the keys of the schema."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dsplan.dsconfig import deepspeed_parser
from dsplan.dsconfig.deepspeed_parser import check_all_with_deepspeed, check_with_deepspeed
from dsplan.dsconfig.emit import emit
from dsplan.dsconfig.read import read_ds_config
from dsplan.errors import InputError, RunError
from dsplan.schemas import schema

from .strategies import CLUSTER, MODEL, every_strategy

SMALLEST: dict[str, Any] = {"train_micro_batch_size_per_gpu": 1, "optimizer": {"type": "AdamW"}}


def write(folder: Path, name: str, document: dict[str, Any]) -> Path:
    path = folder / f"{name}.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


@pytest.mark.engine
def test_deepspeed_accepts_every_strategy_and_reads_the_same(tmp_path: Path) -> None:
    plans = every_strategy()
    paths = [write(tmp_path, plan.name, emit(plan, MODEL, CLUSTER)) for plan in plans]
    results = check_all_with_deepspeed(paths, CLUSTER.world_size)
    assert results is not None
    assert [result.error for result in results if not result.accepted] == []
    for plan, result in zip(plans, results, strict=True):
        resolved, zero = result.resolved, result.resolved["zero_optimization"]
        assert resolved["train_batch_size"] == 48
        assert resolved["gradient_clipping"] == plan.gradient_clipping
        assert resolved["optimizer"].lower() == plan.workload.optimizer
        assert (resolved["fp16"], resolved["bf16"]) == tuple(plan.workload.precision == p for p in ("fp16", "bf16"))
        assert zero["stage"] == plan.zero.stage
        assert zero["reduce_bucket_size"] == plan.zero.reduce_bucket_size
        assert zero["stage3_prefetch_bucket_size"] == plan.zero.stage3_prefetch_bucket_size
        assert zero["overlap_comm"] == plan.zero.overlaps_communication
        assert (zero["offload_optimizer"] or {"device": "none"})["device"] == plan.zero.offload_optimizer.device


READ_ALIKE: dict[str, dict[str, Any]] = {
    "batch-all": {**SMALLEST, "train_batch_size": 24, "gradient_accumulation_steps": 3},
    "batch-total-micro": {**SMALLEST, "train_batch_size": 24},
    "batch-total": {"optimizer": {"type": "AdamW"}, "train_batch_size": 24},
    "batch-total-steps": {"optimizer": {"type": "Adam"}, "train_batch_size": 24, "gradient_accumulation_steps": 3},
    "batch-micro": SMALLEST,
    "clipping": {**SMALLEST, "gradient_clipping": 0.5},
    "zero-true": {**SMALLEST, "zero_optimization": True},
    "bfloat16": {**SMALLEST, "bfloat16": {"enabled": True}},
    "cpu-offload": {**SMALLEST, "zero_optimization": {"stage": 2, "cpu_offload": True}},
    "aliases": {**SMALLEST, "zero_optimization": {"stage": 3, "prefetch_bucket_size": 5e6, "max_live_parameters": 7}},
}
REFUSED_BY_BOTH: dict[str, dict[str, Any]] = {
    "contradiction": {**SMALLEST, "train_batch_size": 25, "gradient_accumulation_steps": 3},
    "indivisible": {"optimizer": {"type": "AdamW"}, "train_batch_size": 25},
    "too-small": {"optimizer": {"type": "AdamW"}, "train_batch_size": 4},
    "no-batch": {"optimizer": {"type": "AdamW"}},
    "both-halves": {**SMALLEST, "fp16": {"enabled": True}, "bf16": {"enabled": True}},
    "zero-typo": {**SMALLEST, "zero_optimization": {"stag": 1}},
    "fp16-typo": {**SMALLEST, "fp16": {"enable": True}},
    "old-and-new": {**SMALLEST, "zero_optimization": {"stage": 2, "cpu_offload": True, "offload_optimizer": {}}},
    "alias-twice": {**SMALLEST, "zero_optimization": {"max_live_parameters": 7, "stage3_max_live_parameters": 7}},
    "ratio": {**SMALLEST, "zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu", "ratio": 0.5}}},
    "text": {**SMALLEST, "zero_optimization": {"reduce_bucket_size": "5e8"}},
    "removed": {**SMALLEST, "amp": {"enabled": True}},
    "mics": {**SMALLEST, "zero_optimization": {"stage": 3, "mics_shard_size": 8}},
}


@pytest.mark.engine
def test_dsplan_reads_what_deepspeed_reads(tmp_path: Path) -> None:
    cases = {**READ_ALIKE, **REFUSED_BY_BOTH}
    paths = {name: write(tmp_path, name, document) for name, document in cases.items()}
    results = check_all_with_deepspeed(list(paths.values()), 8)
    assert results is not None
    by_name = dict(zip(paths, results, strict=True))
    for name in READ_ALIKE:
        resolved, config = by_name[name].resolved, read_ds_config(paths[name], world_size=8)
        workload, zero = config.plan.workload, resolved["zero_optimization"]
        assert (
            config.train_batch_size,
            workload.micro_batch_size,
            workload.gradient_accumulation_steps,
            config.plan.gradient_clipping,
            workload.precision,
        ) == (
            resolved["train_batch_size"],
            resolved["train_micro_batch_size_per_gpu"],
            resolved["gradient_accumulation_steps"],
            resolved["gradient_clipping"],
            "fp16" if resolved["fp16"] else "bf16" if resolved["bf16"] else "fp32",
        ), name
        for key in ("stage", "stage3_prefetch_bucket_size", "stage3_max_live_parameters", "allgather_bucket_size"):
            assert getattr(config.plan.zero, key) == zero[key], (name, key)
        assert config.plan.zero.offload_optimizer.device == (zero["offload_optimizer"] or {"device": "none"})["device"]
    for name in REFUSED_BY_BOTH:
        assert not by_name[name].accepted, name
        assert by_name[name].error
        with pytest.raises(InputError):
            read_ds_config(paths[name], world_size=8)


_FIELDS = """
import json, sys
from deepspeed.compile.config import CompileConfig
from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
from deepspeed.runtime.config import HybridEngineConfig
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from deepspeed.runtime.zero.offload_config import DeepSpeedZeroOffloadOptimizerConfig, DeepSpeedZeroOffloadParamConfig
from deepspeed.runtime.activation_checkpointing.config import ACT_CHKPT_DEFAULT
from deepspeed.runtime.swap_tensor.aio_config import AIO_DEFAULT_DICT
from deepspeed.runtime.lr_schedules import VALID_LR_SCHEDULES
from deepspeed.runtime import lr_schedules
import inspect

def model(kind):
    names = {}
    for name, field in kind.model_fields.items():
        default = None if field.is_required() or field.default_factory else field.default
        for key in {name, field.alias or name}:
            names[key] = default
    return names

json.dump({
    "zero_optimization": model(DeepSpeedZeroConfig),
    "offload_optimizer": model(DeepSpeedZeroOffloadOptimizerConfig),
    "offload_param": model(DeepSpeedZeroOffloadParamConfig),
    "fp16": model(DeepSpeedFP16Config),
    "bf16": model(DeepSpeedBF16Config),
    "hybrid_engine": model(HybridEngineConfig),
    "activation_checkpointing": ACT_CHKPT_DEFAULT,
    "aio": AIO_DEFAULT_DICT,
    "schedules": {
        name: [p for p in inspect.signature(getattr(lr_schedules, name)).parameters if p != "optimizer"]
        for name in VALID_LR_SCHEDULES
    },
}, sys.stderr)
"""


@pytest.mark.engine
def test_the_schema_has_deepspeeds_keys_and_defaults() -> None:
    done = subprocess.run([sys.executable, "-c", _FIELDS], capture_output=True, text=True, check=True, timeout=120)
    deepspeed = json.loads(done.stderr[done.stderr.index('{"zero_optimization"') :])
    schedules = deepspeed.pop("schedules")
    document = schema("deepspeed_config")
    sections = {**document["properties"], **document["$defs"]}
    for name, fields in deepspeed.items():
        properties = sections[name]["properties"]
        assert set(properties) == set(fields), name
        for key, default in fields.items():
            assert properties[key].get("default") == default, f"{name}.{key}"
    for branch in sections["scheduler"]["allOf"]:
        name = branch["if"]["properties"]["type"]["const"]
        assert set(branch["then"]["properties"]["params"]["properties"]) == set(schedules.pop(name)), name
    assert schedules == {}


@pytest.mark.engine
def test_one_file_and_a_missing_one(tmp_path: Path) -> None:
    result = check_with_deepspeed(write(tmp_path, "one", SMALLEST), 4)
    assert result is not None
    assert result.accepted
    assert result.resolved["train_batch_size"] == 4
    missing = check_with_deepspeed(tmp_path / "none.json", 4)
    assert missing is not None
    assert not missing.accepted


@pytest.mark.parametrize("arguments", [[], ["8"], ["a.json", "0"], ["a.json", "b.json"]])
def test_the_runner_says_how_to_use_it(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    from runner.parse_config import main

    assert main(arguments) == 2
    assert "usage:" in capsys.readouterr().err


def test_without_deepspeed_there_is_no_opinion(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deepspeed_parser, "find_spec", lambda _: None)
    assert check_with_deepspeed("ds.json", 1) is None


class _Spec:
    submodule_search_locations = ("/nowhere/runner",)


@pytest.mark.parametrize(
    ("command", "code", "message"),
    [
        ("import sys; sys.exit('it broke')", 5, r"crashed \(exit code 1\): it broke"),
        ("pass", 5, "no output"),
        ("import time; time.sleep(60)", 6, "did not answer"),
    ],
)
def test_a_broken_subprocess_is_an_error(
    monkeypatch: pytest.MonkeyPatch, command: str, code: int, message: str
) -> None:
    real_run = subprocess.run

    def run(words: list[str], **options: Any) -> Any:
        options["timeout"] = min(options["timeout"], 2)
        return real_run([words[0], "-c", command], **options)

    monkeypatch.setattr(deepspeed_parser, "find_spec", lambda _: _Spec())
    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(RunError, match=message) as caught:
        check_with_deepspeed("ds.json", 1)
    assert caught.value.exit_code == code


def test_no_files_and_bad_world_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deepspeed_parser, "find_spec", lambda _: _Spec())
    assert check_all_with_deepspeed([], 1) == []
    with pytest.raises(InputError, match="world_size"):
        check_all_with_deepspeed([], 0)
