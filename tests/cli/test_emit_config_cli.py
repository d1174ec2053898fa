"""dsplan emit-config: a complete file or none, checked before it is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from dsplan.dsconfig import deepspeed_parser
from dsplan.dsconfig.deepspeed_parser import ParserResult
from dsplan.dsconfig.read import read_ds_config
from dsplan.errors import RunError
from dsplan.schemas import schema
from tests.cli.conftest import Run

H200 = ("emit-config", "--model", "gpt2", "--gpu", "h200", "--gpus", "4")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, empty; DeepSpeed's parser is not asked unless a test says so."""
    monkeypatch.chdir(tmp_path)
    answer(monkeypatch, None)
    return tmp_path


def answer(monkeypatch: pytest.MonkeyPatch, result: ParserResult | RunError | None) -> None:
    def check(path: Path, world_size: int) -> ParserResult | None:
        if isinstance(result, RunError):
            raise result
        return result

    monkeypatch.setattr(deepspeed_parser, "check_with_deepspeed", check)


def test_the_recommended_strategy_is_written(run: Run, folder: Path) -> None:
    done = run(*H200, "--micro-batch-size", "3")
    assert (done.code, done.err) == (0, "")
    found = read_ds_config(folder / "ds_config.json", world_size=4)
    assert (found.plan.zero.stage, found.plan.workload.micro_batch_size, found.train_batch_size) == (0, 3, 12)
    assert "zero0" in done.out
    assert "deepspeed --num_gpus 4 train.py --deepspeed --deepspeed_config ds_config.json" in done.out


def test_a_named_strategy_in_a_named_file(run: Run, folder: Path) -> None:
    assert run(*H200, "--strategy", "zero3-offload", "-o", "mine.json").code == 0
    found = read_ds_config(folder / "mine.json", world_size=4)
    assert found.plan.zero.stage == 3
    assert found.plan.zero.offload_optimizer.device == "cpu"
    assert not (folder / "ds_config.json").exists()
    document = json.loads(run(*H200, "--strategy", "zero3-offload", "--json").out)
    assert (document["recommended"], document["reason"]) == (False, "")


def test_a_named_strategy_that_does_not_fit_is_written_with_the_reason(run: Run, folder: Path) -> None:
    done = run("emit-config", "--model", "gpt2", "--gpu", "t4", "--strategy", "zero0")
    assert done.code == 0
    assert "does not fit: the device is short" in done.out
    assert (folder / "ds_config.json").exists()


def test_without_a_device_a_strategy_can_be_named(run: Run, folder: Path) -> None:
    assert run("emit-config", "--model", "gpt2", "--strategy", "zero2").code == 0
    assert (folder / "ds_config.json").exists()


def test_stdout_writes_no_file(run: Run, folder: Path) -> None:
    document = json.loads(run(*H200, "--strategy", "zero2", "--stdout").out)
    assert document["zero_optimization"]["stage"] == 2
    assert list(folder.iterdir()) == []


FILES = {
    "deepspeed": ["ds_config.json"],
    "hf": ["ds_config.json", "training_arguments.json"],
    "accelerate": ["accelerate.yaml", "ds_config.json"],
    "lightning": ["ds_config.json", "lightning_strategy.py"],
    "launch": ["ds_config.json", "hostfile", "launch_deepspeed.sh", "launch_slurm.sh", "launch_torchrun.sh"],
}
TWO_NODES = (*H200, "--nodes", "2", "--strategy", "zero3-ckpt", "--activation-checkpointing", "torch")


@pytest.mark.parametrize("format_name", FILES)
def test_every_format_writes_its_files(run: Run, folder: Path, format_name: str) -> None:
    done = run(*TWO_NODES, "--format", format_name, "-o", "ds_config.json")
    assert (done.code, done.err) == (0, "")
    assert sorted(path.name for path in folder.iterdir()) == FILES[format_name]
    for name in FILES[format_name]:
        assert name in done.out
    assert json.loads((folder / "ds_config.json").read_text())["zero_optimization"]["stage"] == 3


@pytest.mark.parametrize("format_name", FILES)
def test_every_format_in_json(run: Run, folder: Path, format_name: str) -> None:
    document = json.loads(run(*TWO_NODES, "--format", format_name, "-o", "ds_config.json", "--json").out)
    jsonschema.validate(document, schema("emit_config"))
    assert (document["format"], document["written"], document["path"]) == (format_name, True, "ds_config.json")
    files = {file["path"]: file["content"] for file in document["files"]}
    assert files == {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()}
    assert json.loads(files["ds_config.json"]) == document["config"]
    assert document["launch_command"] in document["launch"].values()


@pytest.mark.parametrize("format_name", FILES)
def test_stdout_is_the_main_document_alone(run: Run, folder: Path, format_name: str) -> None:
    out = run(*TWO_NODES, "--format", format_name, "--stdout").out
    assert list(folder.iterdir()) == []
    files = json.loads(run(*TWO_NODES, "--format", format_name, "-o", "ds_config.json", "--json").out)["files"]
    if format_name == "launch":
        assert all(file["content"] in out for file in files[1:])
    else:
        assert out == files[0 if format_name in ("deepspeed", "hf") else 1]["content"]


def test_launch_forms_are_printed_unless_a_file_is_named(run: Run, folder: Path) -> None:
    done = run(*TWO_NODES, "--format", "launch")
    assert done.code == 0
    for words in ("-o writes the files", "sbatch launch_slurm.sh", "node-1 slots=4", "#SBATCH --nodes=2"):
        assert words in done.out
    document = json.loads(run(*TWO_NODES, "--format", "launch", "--json").out)
    jsonschema.validate(document, schema("emit_config"))
    assert document["written"] is False
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("format_name", [name for name in FILES if len(FILES[name]) > 1])
def test_one_file_that_exists_keeps_all_from_being_written(run: Run, folder: Path, format_name: str) -> None:
    for name in FILES[format_name]:
        (folder / name).write_text("mine", encoding="utf-8")
        assert f"{name}: exists already" in run(*TWO_NODES, "--format", format_name, "-o", "ds_config.json").error()
        assert [path.name for path in folder.iterdir()] == [name]
        assert (folder / name).read_text(encoding="utf-8") == "mine"
        (folder / name).unlink()
    (folder / FILES[format_name][-1]).write_text("mine", encoding="utf-8")
    assert run(*TWO_NODES, "--format", format_name, "-o", "ds_config.json", "--force").code == 0
    assert "mine" not in {path.read_text(encoding="utf-8") for path in folder.iterdir()}


def test_json_is_valid(run: Run, folder: Path) -> None:
    document = json.loads(run(*H200, "--json").out)
    jsonschema.validate(document, schema("emit_config"))
    jsonschema.validate(document["config"], schema("deepspeed_config"))
    assert json.loads((folder / "ds_config.json").read_text(encoding="utf-8")) == document["config"]
    assert (document["strategy"], document["recommended"], document["checked_by_deepspeed"]) == ("zero0", True, False)


def test_an_existing_file_stays_without_force(run: Run, folder: Path) -> None:
    path = folder / "ds_config.json"
    path.write_text("mine", encoding="utf-8")
    assert "ds_config.json: exists already" in run(*H200).error()
    assert path.read_text(encoding="utf-8") == "mine"
    assert list(folder.iterdir()) == [path]
    assert run(*H200, "--force").code == 0
    assert json.loads(path.read_text(encoding="utf-8"))["train_batch_size"] == 4


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--device-memory", "1GiB"), ["no strategy fits", "short", "--strategy"]),
        ((), ["no device", "--gpu", "--strategy"]),
        (("--gpu", "h200", "--strategy", "zero4"), ["--strategy: unknown value 'zero4'", "zero3"]),
        (("--gpu", "h200", "--stdout", "-o", "x.json"), ["--stdout and --output"]),
        (("--gpu", "h200", "--stdout", "--json"), ["--stdout and --json"]),
        (("--gpu", "h200", "-o", "none/x.json"), ["none/x.json", "does not exist"]),
        (("--gpu", "h200", "--precision", "fp17"), ["fp16"]),
        (
            ("--gpu", "h200", "--format", "accelerat"),
            ["--format: unknown value", "did you mean accelerate", "lightning"],
        ),
        (("--gpu", "h200", "--format", "hf", "-o", "run.sh"), ["run.sh", "JSON", "ds_config.json"]),
        (("--gpu", "h200", "--format", "launch", "-o", "a\nb.json"), ["cannot be printed"]),
        (("--gpu", "gaudi2", "--format", "lightning"), ["CUDA", "not on gaudi2"]),
        (("--gpu", "h200", "--ds-config", "x.json"), ["--ds-config"]),
    ],
)
def test_what_cannot_be_written_leaves_nothing(
    run: Run, folder: Path, arguments: tuple[str, ...], said: list[str]
) -> None:
    error = run("emit-config", "--model", "gpt2", *arguments).error()
    for words in said:
        assert words in error
    assert list(folder.iterdir()) == []


def result(folder: Path, **fields: Any) -> ParserResult:
    return ParserResult(path=folder, resolved={}, **{"accepted": True, "error": None, **fields})


def test_deepspeed_takes_it(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, result(folder))
    assert json.loads(run(*H200, "--json").out)["checked_by_deepspeed"] is True


def test_deepspeed_refuses_it(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, result(folder, accepted=False, error="no such key"))
    assert "no such key" in run(*H200).error()
    assert list(folder.iterdir()) == []


def test_a_deepspeed_that_does_not_start_is_a_warning(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, RunError("DeepSpeed's parser crashed"))
    done = run(*H200)
    assert done.code == 0
    assert done.err.startswith("dsplan: warning: DeepSpeed's parser crashed")
    assert (folder / "ds_config.json").exists()


def test_a_drive_that_nobody_named_is_a_placeholder(run: Run, folder: Path) -> None:
    said = "/local_nvme is a placeholder: name the folder of each node's NVMe drive with --nvme-path."
    done = run(*H200, "--strategy", "zero3-nvme", "--json")
    assert said in json.loads(done.out)["notes"]
    done = run(*H200, "--strategy", "zero3-nvme", "--stdout")
    assert (done.code, done.err) == (0, f"dsplan: warning: {said}\n")
    assert json.loads(done.out)["zero_optimization"]["offload_param"]["nvme_path"] == "/local_nvme"
    for named in (
        run(*H200, "--strategy", "zero3-nvme", "--nvme-path", "/mnt", "--stdout"),
        run(*H200, "--strategy", "zero3", "--stdout"),
    ):
        assert named.err == ""
