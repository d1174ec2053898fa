"""``dsplan verify``: its options and exit codes; with the real engine on the CPU where marked so."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dsplan import detect, verification
from dsplan.catalogue import accelerator
from dsplan.cli import main
from dsplan.errors import EXIT_MISSING_EXTRA, EXIT_OUT_OF_MEMORY, EXIT_TIMEOUT, MissingExtraError, RunError
from dsplan.measurement import read_measurement
from dsplan.records import mistakes
from tests.forked_ranks import ForkedRanks

ROOT = Path(__file__).parents[2]
TINY = ["--n-layer", "2", "--n-head", "4", "--n-embd", "64", "--vocab-size", "128", "--block-size", "32"]


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (["--device", "gpu"], 2, "--device: unknown value 'gpu'"),
        (["--device", "cuda"], 3, "--device cuda: this machine shows none"),
        (["--device", "hpu"], 3, "--device hpu: this machine shows none"),
        (["--device", "cpu", "--precision", "16"], 2, "fp16 on the CPU is not supported by DeepSpeed"),
        (["--precision", "bf17"], 2, "--precision: unknown value 'bf17'; did you mean bf16"),
        (["--gpus", "0"], 2, "--gpus: 0 is not allowed"),
        (["--steps", "0"], 2, "--steps: 0 is not allowed"),
        (["--timeout", "-1"], 2, "--timeout: -1 is not allowed"),
        (["--tolerance", "0"], 2, "--tolerance: 0 is not allowed"),
        (["--tolerance", "nan"], 2, "--tolerance: nan is not allowed"),
        (["--late-release", "--device", "cpu"], 2, "--late-release: is about torch's NCCL; this run is on cpu"),
        (["--late-release", "--device", "fake"], 2, "leave it out, or take --early-release"),
        (["--data", "images"], 2, "--data: unknown value 'images'; allowed: synthetic, text"),
        (["--strategy", "zero5"], 2, "--strategy: unknown value 'zero5'; did you mean"),
        (["--strategy", "zero2", "--ds-config", "x.json"], 2, "contradict each other"),
        (["--ds-config", "none.json"], 2, "none.json: cannot be read"),
        (["--model", "gpt-mimi"], 2, "did you mean gpt-mini"),
        (["--n-layer", "2"], 2, "--n-head, --n-embd: missing"),
        (["--seq-len", "4096"], 2, "--seq-len: 4096 is longer than the 128 positions"),
        ([*TINY, "--device", "cpu", "--attention", "sdpa", "--dropout", "0.1"], 2, "dropout"),
        (["-o", "no/such/folder.json"], 2, "the folder no/such does not exist"),
    ],
)
def test_bad_input_is_refused_before_anything_runs(
    *,
    arguments: list[str],
    exit_code: int,
    message: str,
    stand_in: Any,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = stand_in()
    monkeypatch.chdir(tmp_path)
    assert main(["verify", *arguments]) == exit_code
    assert message in capsys.readouterr().err
    assert seen == []


def test_a_file_that_is_there_is_not_overwritten(stand_in: Any, tmp_path: Path, capsys: Any) -> None:
    seen = stand_in()
    path = tmp_path / "record.json"
    path.write_text("mine")
    assert main(["verify", "-o", str(path)]) == 2
    assert path.read_text() == "mine"
    assert seen == []
    assert main(["verify", "-o", str(path), "--force", "--tolerance", "1000"]) == 0
    assert read_measurement(path).configuration.strategy == "zero2"
    assert "exists already" in capsys.readouterr().err


def test_more_ranks_than_devices(stand_in: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(detect, "local_accelerator", lambda: accelerator("h200"))
    monkeypatch.setattr(detect, "local_gpu_count", lambda: 1)
    seen = stand_in()
    assert main(["verify", "--gpus", "2"]) == 3
    assert "--gpus: 2 were asked for, but this machine has 1 visible" in capsys.readouterr().err
    main(["verify"])  # auto: the GPU, one rank
    assert (seen[0]["device"], seen[0]["gpus"]) == ("cuda", 1)


def test_what_the_runner_is_told(stand_in: Any, tmp_path: Path, capsys: Any) -> None:
    from runner.spec import RunSpec

    seen = stand_in()
    options = [
        "--device",
        "cpu",
        "--strategy",
        "zero1",
        "--steps",
        "7",
        "--timeout",
        "90",
        "--data",
        "text",
        "--micro-batch-size",
        "3",
    ]
    code = main(["verify", *TINY, *options, "--keep-logs", str(tmp_path / "logs")])
    assert code == 1  # the stand-in's memory is not that of this model
    assert "Refuted" in capsys.readouterr().out
    assert seen[0]["timeout_s"] == 90
    spec = RunSpec.read(tmp_path / "logs" / "spec.json")
    assert (spec.device, spec.gpus, spec.steps, spec.data, spec.sequence_length) == ("cpu", 2, 7, "text", 32)
    assert spec.model["n_layer"] == 2
    assert spec.ds_config["train_batch_size"] == 6
    assert spec.ds_config["zero_optimization"]["stage"] == 1


def test_checkpointing_chooses_the_strategy_that_does_it(stand_in: Any) -> None:
    seen = stand_in()
    main(["verify", "--strategy", "zero1", "--activation-checkpointing", "deepspeed"])
    assert seen[0]["activation_checkpointing"] == "deepspeed"
    assert "activation_checkpointing" in seen[0]["ds_config"]


def test_a_configuration_runs_as_it_is_with_what_the_script_adds(stand_in: Any, tmp_path: Path) -> None:
    config = {
        "train_micro_batch_size_per_gpu": 2,
        "bf16": {"enabled": True},
        "zero_optimization": {"stage": 2, "reduce_bucket_size": 12345, "allgather_bucket_size": 23456},
    }
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(config))
    record = tmp_path / "record.json"
    seen = stand_in()
    main(["verify", *TINY, "--device", "cpu", "--ds-config", str(path), "--optimizer", "adamw", "-o", str(record)])
    run = seen[0]["ds_config"]
    assert run["zero_optimization"] == config["zero_optimization"]
    assert (run["train_batch_size"], run["gradient_accumulation_steps"]) == (4, 1)
    assert run["optimizer"]["type"] == "AdamW"
    assert read_measurement(record).configuration.strategy == "mine"


def test_json_is_the_record_with_the_comparison_inside(stand_in: Any, capsys: Any) -> None:
    stand_in()
    assert main(["verify", "--device", "cpu", "--json"]) == 1
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert mistakes("measurement", document) == []
    assert document["comparison"]["within_tolerance"] is False
    assert "dsplan: building" in captured.err
    assert "dsplan: step 1 of 4, loss 5.000" in captured.err


@pytest.mark.parametrize(
    ("error", "exit_code"),
    [
        (RunError("rank 0 ran out of memory", EXIT_OUT_OF_MEMORY), 4),
        (RunError("rank 1 failed in phase init"), 5),
        (RunError("no result within 5 s", EXIT_TIMEOUT), 6),
        (KeyboardInterrupt(), 130),
    ],
)
def test_how_a_run_ends_is_the_exit_code(
    error: BaseException, exit_code: int, stand_in: Any, tmp_path: Path, capsys: Any
) -> None:
    seen = stand_in(error)
    record = tmp_path / "record.json"
    assert main(["verify", "-o", str(record)]) == exit_code
    assert str(error) in capsys.readouterr().err
    assert not record.exists()
    # The logs of a run that failed are kept: the message names them.
    assert Path(seen[0]["folder"]).exists() is (exit_code != 130)


def test_missing_torch_is_exit_code_7(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def missing() -> None:
        raise MissingExtraError("a verification run needs torch; install it with: pip install 'dsplan[run]'")

    monkeypatch.setattr("dsplan.runner_process.require_run_extra", missing)
    assert main(["verify"]) == EXIT_MISSING_EXTRA
    assert "pip install 'dsplan[run]'" in capsys.readouterr().err


def test_help_names_every_exit_code(capsys: Any) -> None:
    assert main(["verify", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for code in ("0 the", "1 it is not", "2 bad", "3 no", "4 out of", "5 the run", "6 it took", "7 torch", "130 inter"):
        assert code in text


# With the real engine.


def confirmed(record: Path, strategy: str, ranks: int) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(record.read_text())
    assert mistakes("measurement", document) == []
    assert document["configuration"]["strategy"] == strategy
    assert len(document["ranks"]) == ranks
    assert [len(rank["steps"]) for rank in document["ranks"]] == [4] * ranks
    assert document["comparison"]["within_tolerance"] is True
    assert document["ranks"][0]["host"]["base_rss_bytes"] > 0
    return document


def on_the_cpu(record: Path, *options: str) -> list[str]:
    """On the default model: of a smaller one a few per cent of the peak would be what gloo's threads happen to hold
    of a bucket that has been reduced."""
    return ["verify", "--device", "cpu", "--timeout", "300", "--tolerance", "5", "-o", str(record), *options]


@pytest.fixture
def forked(forked_ranks: ForkedRanks, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ranks are real, but neither started by the runner nor by DeepSpeed's launcher, which takes thrice as long."""

    from runner.spec import RunSpec

    def run(spec_path: Path, output_dir: Path, *, timeout_s: float, on_progress: Any) -> list[dict[str, Any]]:
        return forked_ranks.run(RunSpec.read(spec_path), output_dir)

    monkeypatch.setattr(verification, "run_verification", run)


ON_ONE = ("zero0", "zero1", "zero2", "zero3", "zero3-offload")
ON_TWO = ("zero0", "zero1", "zero2", "zero2-offload", "zero3", "zero3-offload", "zero3-offload-param")


@pytest.mark.engine
@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize(("strategy", "ranks"), [*((name, 1) for name in ON_ONE), *((name, 2) for name in ON_TWO)])
def test_the_prediction_holds_on_the_cpu(
    strategy: str, ranks: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("deepspeed")
    record = tmp_path / "record.json"
    code = main(on_the_cpu(record, "--strategy", strategy, "--gpus", str(ranks)))
    assert code == 0, "".join(capsys.readouterr())
    confirmed(record, strategy, ranks)


@pytest.mark.engine
@pytest.mark.parametrize(
    ("options", "strategy", "ranks"),
    [
        (["--gpus", "1", "--strategy", "zero3"], "zero3", 1),
        (
            ["--gradient-accumulation-steps", "3", "--activation-checkpointing", "torch", "--data", "text"],
            "zero2-ckpt",
            2,
        ),
    ],
)
def test_the_command_starts_the_ranks_itself(options: list[str], strategy: str, ranks: int, tmp_path: Path) -> None:
    """As a user runs it: through the runner and DeepSpeed's launcher."""
    pytest.importorskip("deepspeed")
    record = tmp_path / "record.json"
    command = [sys.executable, "-m", "dsplan", *on_the_cpu(record, *options)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=400)
    assert result.returncode == 0, result.stdout + result.stderr
    confirmed(record, strategy, ranks)


@pytest.mark.engine
def test_a_run_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    command = [sys.executable, "-m", "dsplan", "verify", "--device", "cpu", "--timeout", "2"]
    result = subprocess.run(
        [*command, "--keep-logs", str(tmp_path / "logs")], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == EXIT_TIMEOUT, result.stderr
    assert "no result within 2 s" in result.stderr
    assert (tmp_path / "logs" / "launcher.log").exists()
