"""``dsplan verify`` as a dry run: its options, what the runner is told, and records held against it; no run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dsplan import detect
from dsplan.catalogue import accelerator, preset
from dsplan.cli import main
from dsplan.errors import EXIT_OUT_OF_MEMORY, RunError
from dsplan.kernels import kernels_of
from dsplan.measurement import read_measurement
from dsplan.records import mistakes
from dsplan.strategies import find_plan, standard_plans
from dsplan.walk import worst_rank
from dsplan.workload import Workload
from tests.measurements import dry_record, measurement, rank_record

TINY = ["--n-layer", "2", "--n-head", "4", "--n-embd", "64", "--vocab-size", "128", "--block-size", "32"]
GPT2 = ["--model", "gpt2", "--gpus", "4", "--gpu", "h200"]


def told(arguments: list[str], stand_in: Any) -> dict[str, Any]:
    """The specification that ``dsplan verify`` with these arguments writes."""
    seen = stand_in()
    assert main(["verify", *arguments]) in (0, 1)
    (spec,) = seen
    return spec


def written(folder: Path, *records: dict[str, Any]) -> Path:
    """A record as ``verify -o`` writes it."""
    path = folder / "elsewhere.json"
    path.write_text(json.dumps(measurement(*records).to_document()))
    return path


@pytest.fixture
def h200(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with one H200."""
    monkeypatch.setattr(detect, "local_accelerator", lambda: accelerator("h200"))
    monkeypatch.setattr(detect, "local_gpu_count", lambda: 1)


# Which device.


def test_without_a_device_auto_is_a_dry_run_and_says_why(stand_in: Any, capsys: Any) -> None:
    spec = told([], stand_in)
    assert (spec["device"], spec["gpus"], spec["rank"], spec["target"]["name"]) == ("fake", 1, 0, "a100-80gb")
    assert (
        "(neither nvidia-smi nor hl-smi shows a device: a dry run, standing for an NVIDIA A100 80GB; "
        "--gpu names another, --device cpu takes real steps on the CPU)"
    ) in capsys.readouterr().err


@pytest.mark.usefixtures("h200")
def test_with_a_device_auto_takes_real_steps(stand_in: Any) -> None:
    spec = told([], stand_in)
    assert spec["device"] == "cuda"
    assert {"rank", "target", "allocator"}.isdisjoint(spec)


@pytest.mark.usefixtures("h200")
@pytest.mark.parametrize(
    ("arguments", "target", "reason"),
    [
        (["--device", "fake"], "h200", "asked for"),
        (["--gpu", "a100-40gb"], "a100-40gb", "--gpu asks for one"),
        (["--rank", "1", "--gpus", "2"], "h200", "--rank asks for one"),
        (["--alloc-conf", "expandable_segments:True"], "h200", "--alloc-conf asks for one"),
        (["--explain"], "h200", "--explain asks for one"),
    ],
)
def test_an_option_that_only_a_dry_run_has_asks_for_one(
    arguments: list[str], target: str, reason: str, stand_in: Any, capsys: Any
) -> None:
    spec = told(arguments, stand_in)
    assert (spec["device"], spec["target"]["name"]) == ("fake", target)
    assert f"({reason})" in capsys.readouterr().err


def test_a_dry_run_may_stand_for_the_cpu(stand_in: Any, capsys: Any) -> None:
    spec = told(["--gpu", "CPU", "--gpus", "2", "--strategy", "zero3"], stand_in)
    assert (spec["target"]["kind"], spec["target"]["memory_bytes"], spec["gpus"]) == ("cpu", None, 2)
    assert "rank 0 of 2 x CPU" in capsys.readouterr().err


def test_what_the_runner_is_told_of_the_target(stand_in: Any) -> None:
    spec = told([*GPT2, "--strategy", "zero3", "--cap", "40GiB"], stand_in)
    assert spec["gpus"] == 4
    assert spec["memory_cap_bytes"] == 40 * 2**30
    assert spec["ds_config"]["train_batch_size"] == 4
    assert spec["target"]["compute_capability"] == "9.0"
    assert spec["target"]["memory_bytes"] == accelerator("h200").memory_bytes
    assert isinstance(spec["target"]["sources"], list)
    assert (spec["rank"], spec["allocator"]) == (0, "")


@pytest.mark.parametrize("force", [True, False])
def test_a_dry_run_may_be_forced_where_its_versions_are_not_tested(force: bool, stand_in: Any) -> None:
    assert told([*GPT2, *(["--force"] if force else [])], stand_in)["force"] is force


def test_a_real_run_is_not_told_of_force(stand_in: Any) -> None:
    assert "force" not in told(["--device", "cpu", "--force"], stand_in)


@pytest.mark.parametrize("ranks", [512, 4096])
def test_any_number_of_ranks(ranks: int, stand_in: Any) -> None:
    assert told([*TINY, "--gpus", str(ranks)], stand_in)["gpus"] == ranks


# Which rank.


@pytest.mark.parametrize(
    ("arguments", "rank"), [([], "worst"), (["--rank", "worst"], "worst"), (["--rank", "2"], 2), (["--rank", "0"], 0)]
)
def test_the_rank_that_is_dry_run(arguments: list[str], rank: int | str, stand_in: Any, capsys: Any) -> None:
    if rank == "worst":
        plan = find_plan(standard_plans(preset("gpt2"), Workload()), "zero2")
        rank = worst_rank(preset("gpt2"), plan, 4, kernels_of(accelerator("h200")))
        assert rank > 0
    assert told([*GPT2, *arguments], stand_in)["rank"] == rank
    captured = capsys.readouterr()
    assert f"rank {rank} of 4 x NVIDIA H200" in captured.err
    assert f"rank {rank} of 4, standing for NVIDIA H200" in captured.out


def test_the_formula_is_asked_for_the_same_rank(stand_in: Any, capsys: Any) -> None:
    """Stage 1 gives the ranks different parameters, and so different predictions."""
    predicted = set()
    for rank in ("0", "3"):
        stand_in()
        main(["verify", *GPT2, "--strategy", "zero1", "--rank", rank, "--json"])
        document = json.loads(capsys.readouterr().out)
        assert [found["rank"] for found in document["ranks"]] == [int(rank)]
        assert document["configuration"]["world_size"] == 4
        predicted.add(tuple(phase["peak"]["predicted_bytes"] for phase in document["comparison"]["phases"]))
    assert len(predicted) == 2


# The allocator's settings.


@pytest.mark.parametrize(
    ("arguments", "environment", "expected"),
    [
        ([], {}, ""),
        ([], {"PYTORCH_ALLOC_CONF": "max_split_size_mb:64"}, "max_split_size_mb:64"),
        (
            [],
            {"PYTORCH_ALLOC_CONF": "max_split_size_mb:64", "PYTORCH_CUDA_ALLOC_CONF": "backend:native"},
            "backend:native",
        ),
        (["--alloc-conf", ""], {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}, ""),
        (["--alloc-conf", "expandable_segments:True"], {}, "expandable_segments:True"),
        (["--gpu", "cpu"], {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}, ""),
    ],
)
def test_the_settings_of_the_allocator(
    arguments: list[str],
    environment: dict[str, str],
    expected: str,
    stand_in: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert told(arguments, stand_in)["allocator"] == expected


# Bad input.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--device", "cpu", "--gpu", "h200"],
            "--gpu and --device cpu contradict each other: only a dry run has --gpu",
        ),
        (["--device", "cpu", "--rank", "0"], "--rank and --device cpu contradict each other"),
        (["--device", "cpu", "--explain"], "--explain and --device cpu contradict each other"),
        (["--device", "hpu", "--alloc-conf", ""], "--alloc-conf and --device hpu contradict each other"),
        (["--device", "cuda", "--against", "x.json"], "--against and --device cuda contradict each other"),
        (["--gpu", "h2000"], "--gpu: unknown name 'h2000'; did you mean h200"),
        (["--gpu", "a100"], "--gpu: 'a100' comes with more than one memory size"),
        (["--gpu", "h200", "--gpus", "0"], "--gpus: 0 is not allowed"),
        (["--rank", "1"], "--rank: 1 is not allowed; of 1 ranks it must be 0, the only rank"),
        (["--rank", "4", "--gpus", "4"], "--rank: 4 is not allowed; of 4 ranks it must be 0 to 3"),
        (["--rank", "-1", "--gpus", "4"], "--rank: '-1' is not allowed; it must be the number of a rank, or worst"),
        (["--rank", "best"], "--rank: 'best' is not allowed"),
        (["--alloc-conf", "expandable:True"], "--alloc-conf: unknown option 'expandable'"),
        (["--gpu", "cpu", "--alloc-conf", "backend:native"], "--alloc-conf: a CPU has no caching allocator"),
        (["--gpu", "cpu", "--cap", "1GiB"], "--cap: a CPU has no caching allocator to limit"),
        (["--gpu", "cpu", "--precision", "16"], "fp16 on the CPU is not supported"),
        (["--against", "none.json"], "none.json: cannot be read: No such file"),
        (["--against", "broken.json"], "broken.json: line 1, column 1: not valid JSON"),
        (["--against", "record.json", "--model", "gpt2"], "--model and --against record.json contradict each other"),
        (["--against", "record.json", "--gpus", "2", "--steps", "3"], "--gpus, --steps and --against record.json"),
        (["--against", "record.json", "--seq-len", "8"], "--seq-len and --against record.json"),
        (["--against", "record.json", "--strategy", "zero3"], "--strategy and --against record.json"),
        (["--against", "record.json", "--rank", "1"], "--rank: record.json: rank 1 is not in the record, which has 0"),
        (["--against", "record.json", "--rank", "2"], "--rank: 2 is not allowed; of 2 ranks it must be 0 to 1"),
    ],
)
def test_bad_input_is_refused_before_anything_runs(
    arguments: list[str], message: str, stand_in: Any, capsys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("broken.json").write_text("what?")
    written(tmp_path, rank_record(0)).rename("record.json")
    seen = stand_in()
    assert main(["verify", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert seen == []


def test_settings_of_the_environment_are_checked_and_named(
    stand_in: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "max_split:1")
    seen = stand_in()
    assert main(["verify"]) == 2
    assert "PYTORCH_CUDA_ALLOC_CONF: unknown option 'max_split'" in capsys.readouterr().err
    assert seen == []


def test_a_target_that_is_too_small_is_exit_code_4(stand_in: Any, capsys: Any) -> None:
    stand_in(RunError("rank 0 ran out of memory", EXIT_OUT_OF_MEMORY))
    assert main(["verify", *TINY, "--gpu", "t4", "--cap", "1GiB"]) == 4
    assert "ran out of memory" in capsys.readouterr().err


# The record.


def test_the_record_of_a_dry_run_is_valid_and_reads_back(stand_in: Any, tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    stand_in()
    main(["verify", *GPT2, "--strategy", "zero3", "-o", str(path)])
    document = json.loads(path.read_text())
    assert mistakes("measurement", document) == []
    assert document["device"] == {"kind": "fake", "name": "NVIDIA H200 141GB", "memory_bytes": 1024 * 2**20}
    assert {step["loss"] for step in document["ranks"][0]["steps"]} == {None}
    assert "against" not in document["comparison"]
    found = read_measurement(path)
    assert found.dry_run is not None
    assert (found.dry_run.target, found.dry_run.num_answers, found.configuration.world_size) == ("h200", 13, 4)
    assert found.to_document() == {key: value for key, value in document.items() if key != "comparison"}


def test_the_progress_of_a_dry_run_has_no_loss(stand_in: Any, capsys: Any) -> None:
    told([], stand_in)
    assert "dsplan: step 1 of 4\n" in capsys.readouterr().err


def test_explain_prints_causes_and_lines(stand_in: Any, capsys: Any) -> None:
    told(GPT2, stand_in)
    assert "by cause" not in capsys.readouterr().out
    told([*GPT2, "--explain"], stand_in)
    text = capsys.readouterr().out
    assert "The peak, in backward of step 2, by cause and line of source:" in text
    assert "deepspeed/runtime/zero/stage3.py:200" in text


# Against a record.


def test_what_a_record_says_was_run_is_dry_run(stand_in: Any, tmp_path: Path, capsys: Any) -> None:
    record = written(tmp_path, rank_record(0, cuda=True), rank_record(1, cuda=True))
    seen = stand_in([dry_record(0, 2)])
    output = tmp_path / "dry.json"
    assert main(["verify", "--against", str(record), "-o", str(output)]) == 0
    spec = seen[0]
    made = json.loads(record.read_text())["configuration"]
    assert (spec["model"], spec["ds_config"]) == (made["model"], made["ds_config"])
    assert (spec["device"], spec["gpus"], spec["rank"], spec["steps"]) == ("fake", 2, 0, 4)
    assert (spec["sequence_length"], spec["data"]) == (64, "synthetic")
    assert (spec["target"]["name"], spec["target"]["label"]) == ("measured", "Test device")
    text = capsys.readouterr().out
    assert "Confirmed: dry run against the record" in text
    document = json.loads(output.read_text())
    assert mistakes("measurement", document) == []
    assert document["device"]["kind"] == "fake"
    comparison = document["comparison"]
    assert comparison["against"] == str(record)
    assert comparison["peak_reserved"]["error_bytes"] == comparison["peak_device"]["error_bytes"] == 0


def test_a_dry_run_that_misses_the_record_is_exit_code_1(stand_in: Any, tmp_path: Path, capsys: Any) -> None:
    other = rank_record(0, cuda=True)
    for one in other["steps"]:
        one["phases"]["backward"]["peak_bytes"] *= 2
    record = written(tmp_path, other)
    stand_in([dry_record(0, 2)])
    assert main(["verify", "--against", str(record)]) == 1
    assert "Refuted: dry run against the record" in capsys.readouterr().out
    assert main(["verify", "--against", str(record), "--tolerance", "60"]) == 0


def test_the_worst_rank_of_the_record_unless_another_is_named(stand_in: Any, tmp_path: Path) -> None:
    high = rank_record(1)
    high["steps"][2]["phases"]["backward"]["peak_bytes"] *= 3
    record = written(tmp_path, rank_record(0), high)
    seen = stand_in()
    main(["verify", "--against", str(record)])
    # Only that rank of the record is compared.
    assert main(["verify", "--against", str(record), "--rank", "0"]) == 0
    assert [spec["rank"] for spec in seen] == [1, 0]
    assert seen[0]["target"]["kind"] == "cpu"


def test_the_device_of_a_record_can_be_said(stand_in: Any, tmp_path: Path) -> None:
    record = written(tmp_path, rank_record(0, cuda=True))
    assert told(["--against", str(record), "--gpu", "b200"], stand_in)["target"]["name"] == "b200"


def test_a_dry_run_can_be_held_against_an_earlier_one(stand_in: Any, tmp_path: Path) -> None:
    record = written(tmp_path, dry_record(3, 4))
    seen = stand_in()
    assert main(["verify", "--against", str(record)]) == 0
    assert (seen[0]["gpus"], seen[0]["rank"], seen[0]["target"]["name"]) == (4, 3, "h200")


@pytest.mark.parametrize("name", ["gpt2-z3-fp16-n2", "gpt2-xl-z2-offload-n4"])
def test_records_of_real_gpus_can_be_dry_run(name: str, stand_in: Any) -> None:
    path = Path(__file__).parents[1] / "data" / "measured" / f"{name}.json"
    spec = told(["--against", str(path)], stand_in)
    found = read_measurement(path)
    assert (spec["target"]["name"], spec["gpus"]) == ("h200", found.configuration.world_size)
    assert spec["ds_config"] == found.configuration.ds_config


def test_what_only_a_dry_run_covers_stands_alone(tmp_path: Path, stand_in: Any, capsys: Any) -> None:
    path = tmp_path / "muon.json"
    muon = {"type": "Muon", "params": {"lr": 1e-3, "ns_method": "standard"}}
    path.write_text(
        json.dumps({"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 2}, "optimizer": muon})
    )
    arguments = [*TINY, "--gpus", "2", "--gpu", "h200", "--ds-config", str(path)]
    spec = told(arguments, stand_in)
    assert spec["ds_config"]["optimizer"] == muon
    assert spec["ds_config"]["train_batch_size"] == 2
    printed = " ".join(capsys.readouterr().out.split())
    what = "optimizer.params.ns_method = 'standard'"
    assert printed.endswith(f"The formulas do not cover {what}: the dry run stands alone.")
    stand_in()
    assert main(["verify", *arguments, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert "comparison" not in document
    assert document["configuration"]["workload"]["optimizer"] == "muon"
    assert main(["verify", *TINY, "--device", "cpu", "--ds-config", str(path)]) == 2
    assert "is not modelled yet" in capsys.readouterr().err


def test_a_dry_run_needs_no_drive(stand_in: Any) -> None:
    spec = told([*TINY, "--gpus", "2", "--gpu", "h200", "--strategy", "zero3-nvme"], stand_in)
    assert spec["ds_config"]["zero_optimization"]["offload_param"]["device"] == "nvme"


@pytest.mark.parametrize(
    "twice", [("--events", "x.svg", "--events", "x.svg"), ("--events", "x.jsonl", "-o", "x.jsonl")]
)
def test_no_file_is_written_twice(
    twice: tuple[str, ...],
    stand_in: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Asked before the run, which takes its time."""
    monkeypatch.chdir(tmp_path)
    seen = stand_in()
    assert main(["verify", *GPT2, *twice]) == 2
    assert f"--events: {twice[1]} is named twice" in capsys.readouterr().err
    assert not seen
    assert not list(tmp_path.iterdir())
