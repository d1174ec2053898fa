"""Inputs and jobs from a configuration that a framework completes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from dsplan.cli.inputs import Inputs, read_inputs
from dsplan.cli.options import MachineOptions, ModelOptions, WorkloadOptions
from dsplan.cli.verify_input import read_job
from dsplan.cli.verify_options import DryRunOptions, RunOptions
from dsplan.errors import InputError
from tests.report import estimates

VALID = Path(__file__).parents[1] / "data" / "configs" / "valid"


@pytest.fixture(autouse=True)
def strategies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dsplan.strategies", estimates)


def inputs(path: Path, consumer: str | None = "hf", **workload: Any) -> Inputs:
    machine = MachineOptions(gpus=4)
    return read_inputs(
        ModelOptions(model="gpt2"), WorkloadOptions(**workload), machine, ds_config=path, consumer=consumer
    )


def test_the_flags_are_the_trainers_arguments() -> None:
    found = inputs(
        VALID / "hf_zero3.json", micro_batch_size=2, gradient_accumulation_steps=3, precision="bf16", seq_len=256
    )
    [plan] = found.plans
    workload = plan.workload
    assert (workload.micro_batch_size, workload.gradient_accumulation_steps, workload.precision) == (2, 3, "bf16")
    assert plan.zero.reduce_bucket_size == 768 * 768
    assert found.ds_config is not None
    assert found.ds_config.consumer == "hf"
    assert {item.by for item in found.ds_config.inferred} == {"transformers"}


def test_the_name_of_the_reader_may_be_capitalised() -> None:
    assert inputs(VALID / "hf_zero3.json", "HF").plans[0].workload.micro_batch_size == 8


def test_the_file_is_not_contradicted(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    document = json.loads((VALID / "hf_zero3.json").read_text())
    path.write_text(json.dumps({**document, "train_micro_batch_size_per_gpu": 4}))
    assert inputs(path).plans[0].workload.micro_batch_size == 4
    with pytest.raises(InputError, match=r"--micro-batch-size 2 contradicts --ds-config .*which says 4"):
        inputs(path, micro_batch_size=2)


def test_a_framework_leaves_missing_batch_sizes_to_deepspeed_which_stops(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"optimizer": {"type": "AdamW"}, "zero_optimization": {"stage": 1}}))
    assert inputs(path, None, micro_batch_size=3).plans[0].workload.micro_batch_size == 3
    with pytest.raises(InputError, match="DeepSpeed needs at least one of them"):
        inputs(path, "hf", micro_batch_size=3)
    assert inputs(path, "lightning", micro_batch_size=3).plans[0].workload.micro_batch_size == 3


@pytest.mark.parametrize(
    ("name", "consumer", "said"),
    [
        ("hf_zero2.json", None, "--for (hf, accelerate)"),
        ("hf_zero2.json", "lightning", "Lightning does not fill it in"),
        ("hf_zero2.json", "trainer", "--for: unknown value 'trainer'"),
    ],
)
def test_what_is_refused(name: str, consumer: str | None, said: str) -> None:
    with pytest.raises(InputError) as caught:
        inputs(VALID / name, consumer)
    assert said in str(caught.value)


def test_a_reader_without_a_file() -> None:
    with pytest.raises(InputError, match="--for hf: says who reads a DeepSpeed configuration; give one with --ds-conf"):
        read_inputs(ModelOptions(model="gpt2"), WorkloadOptions(), MachineOptions(gpus=1), consumer="hf")
    with pytest.raises(InputError, match="--for hf: says who reads"):
        read_job(ModelOptions(), WorkloadOptions(), RunOptions(), DryRunOptions(), consumer="hf")


def test_a_job_has_what_deepspeed_gets(capsys: pytest.CaptureFixture[str]) -> None:
    run = RunOptions(ds_config=VALID / "hf_zero3.json", device="cpu", gpus=2, steps=6)
    job = read_job(ModelOptions(), WorkloadOptions(), run, DryRunOptions(), consumer="hf")
    assert "auto" not in json.dumps(job.ds_config)
    assert job.ds_config["train_batch_size"] == 16
    assert job.ds_config["scheduler"]["params"]["total_num_steps"] == 6
    err = capsys.readouterr().err
    line = "dsplan: zero_optimization.reduce_bucket_size: auto -> 36,864 (hidden size squared), as transformers does\n"
    assert line in err
