"""Where output goes when nobody can take it, and what a shell is told of the options."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dsplan.cli import COMMANDS, main
from dsplan.errors import EXIT_CLOSED_PIPE, EXIT_OK, EXIT_RUN_FAILED
from tests.cli.conftest import Run

SMALL = ("estimate", "--model", "gpt-nano", "--plan", "zero0")
DSPLAN = (sys.executable, "-c", "import sys; from dsplan.cli import main; sys.exit(main())")


@pytest.mark.parametrize("arguments", [SMALL, (*SMALL, "--json"), ("estimate", "--help")])
def test_a_reader_that_has_enough_is_no_error(arguments: tuple[str, ...]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([*DSPLAN, *arguments], stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (EXIT_CLOSED_PIPE, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize("arguments", [SMALL, (*SMALL, "--json")])
def test_a_full_disk_is_one_line(arguments: tuple[str, ...]) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([*DSPLAN, *arguments], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == EXIT_RUN_FAILED
    assert done.stderr == "dsplan: error: the output cannot be written: No space left on device\n"


@pytest.mark.parametrize(("columns", "widest"), [("0", 80), ("1", 80), ("60", 80), ("nonsense", 80)])
def test_a_terminal_that_does_not_say_its_width_loses_nothing(columns: str, widest: int, run: Run) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", columns)
        lines = run(*SMALL, "--gpu", "h100").out.splitlines()
    assert lines[0].startswith("Model: gpt-nano: ")
    assert any(line.startswith("  zero0") for line in lines)
    assert 40 <= max(map(len, lines)) <= widest


@pytest.mark.parametrize("command", COMMANDS)
def test_help_cuts_no_name_of_an_option_at_80_columns(command: str, run: Run) -> None:
    found = run(command, "--help")
    assert found.code == 0
    assert "…" not in found.out
    assert max(map(len, found.out.splitlines())) <= 80


@pytest.mark.parametrize("command", [(), *((name,) for name in COMMANDS)])
def test_help_has_a_short_name(command: tuple[str, ...], run: Run) -> None:
    assert run(*command, "-h") == run(*command, "--help")


def test_a_wrong_option_sends_to_the_help_of_its_command(run: Run) -> None:
    assert run("estimate", "--modle", "gpt2").error().endswith("see dsplan estimate --help\n")
    assert run("estimat").error().endswith("see dsplan --help\n")


def test_check_prints_json_as_the_other_commands_do(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "ds_config.json"
    path.write_text('{"train_batch_size": 8}')
    assert run("check", str(path), "--json").out == run("check", str(path), "--format", "json").out
    assert "--json and --format github contradict" in run("check", str(path), "--json", "--format", "github").error()


def test_a_check_says_what_an_option_needs(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "ds_config.json"
    path.write_text('{"train_batch_size": 8}')
    for option in (("--gpu", "t4"), ("--device-memory", "8GiB"), ("--seq-len", "64")):
        assert "what fits depends on the model; name one with --model" in run("check", str(path), *option).error()
    assert "standard input is /dev/stdin" in run("check", "-").error()


def test_a_check_of_files_without_a_configuration_says_so(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "notes.md"
    path.write_text("# Nothing to see")
    found = run("check", str(path))
    assert (found.code, found.out) == (0, "Checked 0 configurations in 1 file: nothing there to check.\n")


def test_underscores_are_hyphens(run: Run) -> None:
    pasted = run("estimate", "--n_layer", "2", "--n_head", "2", "--n_embd", "64", "--batch_size", "3", "--seq_len", "8")
    assert pasted.code == 0
    assert "8 tokens a sample; micro batch 3 x" in pasted.out


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("emit", ["emit-config"]),
        ("estimate --gpu a100", ["a100-40gb", "a100-80gb"]),
        ("estimate --model gpt2-m", ["gpt2-medium", "gpt2-medium-hf"]),
        ("estimate --plan zero2-o", ["zero2-offload", "zero2-offload-ckpt"]),
        ("emit-config --format l", ["lightning", "launch"]),
        ("estimate --require ", ["fits", "tight"]),
        ("estimate --attention f", ["flash_attention_2"]),
        ("estimate --activation gelu_", ["gelu_new"]),
        ("estimate --precision b", ["bf16"]),
        ("estimate --optimizer s", ["sgd"]),
        ("estimate --activation-checkpointing d", ["deepspeed"]),
        ("estimate --for h", ["hf"]),
    ],
)
def test_a_shell_completes(
    words: str, offered: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("_DSPLAN_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", f"dsplan {words}")
    monkeypatch.setenv("COMP_CWORD", str(len(words.split(" "))))
    with pytest.raises(SystemExit):
        main([])
    assert capsys.readouterr().out.split() == offered


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--model", ""), "--model: '' is neither a preset nor a file"),
        (("--model", "gpt2", "--gpus", "1000000000000"), "--gpus: 1000000000000 is not allowed; at most 100,000"),
        (("--model", "gpt2", "--nodes", "100001"), "--nodes: 100001 is not allowed; at most 100,000"),
        (("--model", "gpt2", "--micro-batch-size", "99999999999"), "--micro-batch-size: 99999999999 is not allowed"),
        (("--model", "gpt2", "--block-size", "99999999999"), "--block-size: 99999999999 is not allowed"),
        (("--model", "gpt2", "--vocab-size", "99999999999"), "--vocab-size: 99999999999 is not allowed"),
        (("--model", "llama-3.1-8b", "--lora-rank", "0"), "--lora-rank: 0 is not allowed"),
        (("--model", "gpt2", "--lora-rank", "8"), "--lora-rank: only a decoder"),
        (("--model", "llama-3.1-8b", "--frozen-layers", "99"), "--frozen-layers: 99 is not allowed"),
        (("--model", "gpt2", "--ladder"), "--ladder: finds what fits on a device; name one with --gpu"),
        (("--model", "gpt2", "--exact"), "--exact: a dry run needs a device; name one with --gpu"),
        (
            ("--model", "gpt2", "--tie-word-embeddings", "--no-tie-word-embeddings"),
            "--tie-word-embeddings and --no-tie-word-embeddings contradict each other",
        ),
    ],
)
def test_what_cannot_be_planned_is_refused_with_its_flag(arguments: tuple[str, ...], said: str, run: Run) -> None:
    assert said in run("estimate", *arguments).error()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("-o", "nowhere/ds_config.json"), "the folder nowhere does not exist"),
        (("--deepspeed-version", "abc"), "--deepspeed-version: 'abc' is not allowed"),
    ],
)
def test_emit_config_refuses_before_it_estimates(
    arguments: tuple[str, ...], said: str, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def never(*_arguments: object, **_options: object) -> None:
        raise AssertionError("the work had begun")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("dsplan.cli.emit_config.choose_plan", never)
    assert said in run("emit-config", "--model", "gpt2", "--gpu", "h200", *arguments).error()


def test_a_folder_that_may_not_be_written_is_refused_before_the_work(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("dsplan.files.os.access", lambda _path, _mode: False)
    target = tmp_path / "ds_config.json"
    said = run("emit-config", "--model", "gpt2", "--gpu", "h200", "-o", str(target)).error()
    assert f"{target}: cannot be written: {tmp_path} is a folder in which you may not write" in said


def test_emit_config_warns_of_what_does_not_fit_where_only_the_document_is_printed(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dsplan.dsconfig.deepspeed_parser.check_with_deepspeed", lambda *_: None)
    found = run("emit-config", "--model", "gpt2", "--device-memory", "80GiB", "--strategy", "zero0", "--stdout")
    assert found.code == EXIT_OK
    assert found.out.startswith("{")
    assert "dsplan: warning: zero0: does not fit: " in found.err
