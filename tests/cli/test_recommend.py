"""``dsplan recommend``, ``fit`` and ``sweep`` on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dsplan.cli import main
from dsplan.records import mistakes
from tests.timing.profiles import document


@pytest.fixture(scope="module")
def made_up(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("profiles") / "made-up.json"
    path.write_text(json.dumps(document()))
    return str(path)


MACHINE = ("--gpus", "2", "--gpu", "t4", "--host-memory", "64GB", "--precision", "fp16")


def test_a_search_prints_the_winner_the_front_and_why_not(
    made_up: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plot = tmp_path / "front.svg"
    assert main(["recommend", "--model", "gpt2", *MACHINE, "--profile", made_up, "--plot", str(plot)]) == 0
    text = capsys.readouterr().out
    for part in ("Recommended: zero", "train_micro_batch_size_per_gpu", "Memory against speed", "Why not:", "What if:"):
        assert part in text
    assert max(len(line) for line in text.splitlines()) <= 80
    assert plot.read_text().endswith("</svg>\n")
    assert main(["recommend", "--model", "gpt2", *MACHINE, "--profile", made_up, "--plot", str(plot)]) == 2
    assert "--force" in capsys.readouterr().err


def test_documents_are_valid(made_up: str, capsys: pytest.CaptureFixture[str]) -> None:
    calls = {
        "search": ["recommend", "--micro-batch-size", "2", "--profile", made_up],
        "fit": ["fit", "--what", "micro-batch", "--activation-checkpointing", "none"],
        "sweep": ["sweep", "--micro-batch-sizes", "1,2", "--profile", made_up],
    }
    for schema, (command, *options) in calls.items():
        assert main([command, "--model", "gpt2", *MACHINE, *options, "--json"]) == 0
        assert mistakes(schema, json.loads(capsys.readouterr().out)) == []


def test_a_sweep_goes_to_a_file_of_the_suffix(made_up: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, begins in (("s.csv", "accelerator,"), ("s.json", "{"), ("s.svg", "<svg")):
        path = tmp_path / name
        assert main(["sweep", "--model", "gpt2", *MACHINE, "--profile", made_up, "-o", str(path)]) == 0
        assert path.read_text().startswith(begins)
    assert "plans in" in capsys.readouterr().out


def test_a_sweep_in_a_file_leaves_json_what_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "s.json"
    assert main(["sweep", "--model", "gpt-nano", *MACHINE, "--no-times", "-o", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(path.read_text())


@pytest.mark.parametrize("command", ["estimate", "emit-config", "recommend"])
def test_a_model_with_a_long_context_is_planned_with_all_of_it_and_told(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.chdir(tmp_path)  # where emit-config finds no file of another run
    main([command, "--model", "llama-3.2-1b", "--gpu", "rtx-4090", "--gpus", "1", "--host-memory", "64GB"])
    said = capsys.readouterr()
    assert "all the 131,072 tokens that the model takes: --seq-len shortens it" in said.out + said.err


def test_a_drive_that_nobody_named_is_not_recommended(capsys: pytest.CaptureFixture[str]) -> None:
    machine = ["--gpu", "rtx-3090", "--gpus", "1", "--host-memory", "72GiB"]
    options = ["--model", "llama-3.2-3b", "--seq-len", "3500", *machine]
    assert main(["estimate", *options, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    verdicts = {plan["name"]: plan["verdict"] for plan in document["plans"]}
    assert verdicts["zero3-nvme"] == "fits"
    assert document["recommended"] == "zero2-offload-ckpt"
    assert main(["estimate", *options, "--nvme-path", "/mnt", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["recommended"] == "zero3-nvme"


def test_fit_says_what_is_short(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["fit", "--model", "1.7B", *MACHINE, "--activation-checkpointing", "none", "--what", "micro-batch"]) == 0
    )
    text = capsys.readouterr().out
    assert "none  " in text
    assert "the device" in text


def test_the_winner_is_written_and_read_back_as_it_was_found(
    made_up: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "ds_config.json"
    options = ["--model", "gpt2", *MACHINE, "--profile", made_up]
    assert main(["recommend", *options, "--global-batch-size", "64", "-o", str(file), "--json"]) == 0
    winner = json.loads(capsys.readouterr().out)["winner"]
    written = json.loads(file.read_text())
    assert written["train_batch_size"] == 64
    assert written["train_micro_batch_size_per_gpu"] == winner["micro_batch_size"]
    assert written["gradient_accumulation_steps"] == winner["gradient_accumulation_steps"]
    assert written["zero_optimization"]["stage"] == int(winner["strategy"][4])
    too_large = ["--model", "45B", "--gpus", "1", "--gpu", "t4", "--host-memory", "64GB"]
    assert main(["recommend", *too_large, "-o", str(tmp_path / "no.json")]) == 2
    assert "nothing fits" in capsys.readouterr().err
    assert not (tmp_path / "no.json").exists()


def test_when_nothing_fits_it_says_for_what_and_what_a_drive_would_change(capsys: pytest.CaptureFixture[str]) -> None:
    machine = ("--model", "gpt2", "--gpu", "rtx-4090", "--host-memory", "1GiB", "--seq-len", "64")
    assert main(["recommend", *machine, "--micro-batch-size", "1"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert text.startswith("Model: gpt2: 163,037,184 parameters")
    assert "Nothing fits" in text
    assert "zero3-nvme: it needs an NVMe drive on each node; name its folder with --nvme-path" in text
    assert main(["recommend", *machine, "--micro-batch-size", "1", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert mistakes("search", document) == []
    assert {"zero3-nvme", "zero3-nvme-ckpt"} <= {one["strategy"] for one in document["rejected"]}
    assert main(["recommend", *machine, "--micro-batch-size", "1", "--nvme-path", "/mnt/nvme", "--json"]) == 0
    assert not [one for one in json.loads(capsys.readouterr().out)["rejected"] if "--nvme-path" in one["why"]]


def test_fit_asks_of_a_decoder_what_can_grow(capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--model", "opt-125m", "--seq-len", "64", *MACHINE, "--activation-checkpointing", "none")
    assert main(["fit", *options, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["what"] == "micro-batch"
    assert main(["fit", *options, "--what", "sequence"]) == 2
    assert "dsplan estimate --ladder finds the longest sequence of opt-125m" in capsys.readouterr().err
    assert main(["fit", *options, "--what", "model"]) == 2
    assert "fixed by its configuration" in capsys.readouterr().err


def test_without_a_profile_data_sheets_are_used_and_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recommend", "--model", "gpt2", *MACHINE, "--micro-batch-size", "1"]) == 0
    assert "times by the profile nominal t4, from data sheets" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("recommend", "--objective", "fast"), "objective: unknown value 'fast'"),
        (("recommend", "--global-batch-size", "7"), "7 samples do not divide among 2 ranks; nearest: 6 or 8"),
        (("recommend", "--headroom", "much"), "--headroom: 'much' is not a size"),
        (("recommend", "--headroom", "2"), "--headroom: 2 bytes is not allowed; at least 1 MiB, such as 2GiB"),
        (("recommend", "--global-batch-size", "0"), "--global-batch-size: 0 is not allowed"),
        (("recommend", "--plot", "a.svg", "-o", "a.svg"), "--output a.svg and --plot a.svg name one file"),
        (("recommend", "--profile", "missing.json"), "missing.json: cannot be read"),
        (("fit", "--what", "width"), "--what: unknown value 'width'"),
        (("sweep", "--gpu-counts", "2,x"), "--gpus 2 and --gpu-counts 2,x contradict each other"),
        (("sweep", "--gpu-types", "a101"), "--gpu t4 and --gpu-types a101 contradict each other"),
        (("sweep", "--micro-batch-sizes", "1,1000000"), "--micro-batch-sizes: 1000000 is not allowed; at most 65,536"),
        (("sweep", "-o", "sweep.txt"), "suffix '.txt'"),
        (
            ("sweep", "--seq-lens", "4096", "--no-times"),
            "--seq-lens: 4096 is longer than the model's 1024 positions",
        ),
    ],
)
def test_bad_input_is_one_line(
    made_up: str, arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    profile = () if "--profile" in arguments or arguments[0] == "fit" else ("--profile", made_up)
    assert main([arguments[0], "--model", "gpt2", *MACHINE, *arguments[1:], *profile]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--gpu-types", "a101"), "--gpu-types: unknown name 'a101'"),
        (("--gpu-types", " , "), "--gpu-types: no device was named"),
        (("--gpu-types", "t4", "--gpu-counts", "2,x"), "--gpu-counts: 'x' is not allowed"),
        (("--gpu-types", "t4", "--gpu-counts", "100001"), "--gpu-counts: 100001 is not allowed; at most 100,000"),
    ],
)
def test_wrong_lists_of_a_sweep(arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", "--model", "gpt2", "--precision", "fp16", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
