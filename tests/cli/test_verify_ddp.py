"""``dsplan verify --plan ddp``: what the runner is told, what is refused, and a record that is run again, dry."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dsplan.cli import main
from dsplan.dsconfig.ddp import is_ddp
from dsplan.measurement import read_measurement

LLAMA = ["--model", "llama-3.2-1b", "--gpus", "2"]
FAKE = ["--device", "fake"]


def told(arguments: list[str], stand_in: Any) -> dict[str, Any]:
    seen: list[dict[str, Any]] = stand_in()
    main(["verify", *arguments])
    (spec,) = seen
    return spec


@pytest.mark.parametrize("flag", ["--plan", "--strategy"])
def test_the_runner_is_told_of_ddp(flag: str, stand_in: Any) -> None:
    given = ["--gpu", "h200", "--gpus", "4", "--gradient-accumulation-steps", "3", "--optimizer", "sgd"]
    spec = told([flag, "ddp", *given, "--precision", "16"], stand_in)
    assert is_ddp(spec["ds_config"])
    assert spec["ds_config"]["optimizer"]["type"] == "SGD"
    assert spec["ds_config"]["gradient_accumulation_steps"] == 3
    assert spec["ds_config"]["fp16"]["enabled"]
    assert spec["activation_checkpointing"] == "none"
    assert (spec["rank"], spec["gpus"]) == (0, 4)


@pytest.mark.parametrize("given", [["--plan", "ddp-ckpt"], ["--plan", "ddp", "--activation-checkpointing", "torch"]])
def test_with_checkpointing(given: list[str], stand_in: Any) -> None:
    assert told([*given, *FAKE], stand_in)["activation_checkpointing"] == "torch"


def test_on_the_cpu_it_is_fp32(stand_in: Any) -> None:
    spec = told(["--plan", "ddp", "--device", "cpu"], stand_in)
    assert not spec["ds_config"].get("bf16", {}).get("enabled")
    assert not spec["ds_config"].get("fp16", {}).get("enabled")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--device", "cpu", "--precision", "bf16"],
            "--precision bf16: torch's autocast lowers other operators",
        ),
        (["--gpu", "cpu", "--precision", "16"], "--precision 16: torch's autocast lowers other operators"),
        ([*FAKE, "--optimizer", "lion"], "optimizer: torch has no lion; with ddp use one of adamw, adam, sgd, adagrad"),
        ([*FAKE, "--activation-checkpointing", "deepspeed"], "activation_checkpointing deepspeed is DeepSpeed's own"),
        ([*FAKE, *LLAMA], "--plan ddp: DDP is planned for minGPTs only, and"),
        (["--ds-config", "x.json"], "--strategy ddp and --ds-config x.json contradict each other"),
    ],
)
def test_what_it_cannot_do_is_refused(arguments: list[str], message: str, stand_in: Any, capsys: Any) -> None:
    seen = stand_in()
    assert main(["verify", "--plan", "ddp", *arguments]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert seen == []


def test_a_misspelt_name_has_its_nearest(stand_in: Any, capsys: Any) -> None:
    stand_in()
    assert main(["verify", "--plan", "ddp-chkpt", *FAKE]) == 2
    assert "did you mean ddp-ckpt" in capsys.readouterr().err


def test_its_record_says_what_was_run_and_is_run_again_dry(stand_in: Any, tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    stand_in()
    main(["verify", "--plan", "ddp", "--device", "cpu", "--tolerance", "1000", "-o", str(path)])
    assert is_ddp(read_measurement(path).configuration.ds_config)
    assert json.loads(path.read_text())["configuration"]["strategy"] == "ddp"
    spec = told(["--against", str(path), "--gpu", "cpu"], stand_in)
    assert is_ddp(spec["ds_config"])
    assert spec["device"] == "fake"
