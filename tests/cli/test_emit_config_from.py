"""``emit-config --from`` and ``--explain``, with the real formulas."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from jsonschema import validate

from dsplan.cli import main
from dsplan.schemas import schema

MACHINE = ("--model", "gpt2", "--seq-len", "128", "--gpus", "2", "--gpu", "a100-80gb")
FILE = {
    "train_micro_batch_size_per_gpu": 1,
    "bf16": {"enabled": True},
    "optimizer": {"type": "AdamW", "params": {"lr": 1e-4}},
    "wandb": {"enabled": False},
    "zero_optimization": {"stage": 3, "cpu_offload": True, "reduce_bucket_size": 5e8},
}
Emit = Callable[..., tuple[int, str, str]]


@pytest.fixture
def emit(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Emit:
    monkeypatch.setattr("dsplan.dsconfig.deepspeed_parser.check_with_deepspeed", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    Path("mine.json").write_text(json.dumps(FILE))

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(("emit-config", *MACHINE, *arguments))
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_an_improved_file_is_written_with_its_differences(emit: Emit) -> None:
    code, out, _ = emit("--from", "mine.json", "-o", "better.json")
    assert code == 0
    written = json.loads(Path("better.json").read_text())
    assert written["zero_optimization"] == {"stage": 0}
    assert written["wandb"] == {"enabled": False}
    for words in ("zero0 is faster and fits", "GPU peak, allocated", "difference", "cpu_offload"):
        assert words in " ".join(out.split())
    assert json.loads(Path("mine.json").read_text()) == FILE


def test_the_document_has_both(emit: Emit) -> None:
    code, out, _ = emit("--from", "mine.json", "-o", "better.json", "--explain", "--json")
    assert code == 0
    document = json.loads(out)
    validate(document, schema("emit_config"))
    assert document["improvement"]["strategy"] == "zero0"
    keys = [reason["key"] for reason in document["reasons"]]
    assert "zero_optimization.stage" in keys
    assert len(keys) == len(set(keys))


def test_every_value_is_explained(emit: Emit) -> None:
    code, out, _ = emit("--strategy", "zero3", "-o", "new.json", "--explain")
    assert code == 0
    assert "Why each value is what it is" in out
    assert "optimizer.params.weight_decay = 0.1" in " ".join(out.split())


def test_two_ways_to_choose_contradict_each_other(emit: Emit) -> None:
    code, out, err = emit("--from", "mine.json", "--strategy", "zero2")
    assert (code, out) == (2, "")
    assert "--strategy zero2 and --from mine.json contradict each other" in err


def test_what_cannot_be_estimated_writes_nothing(emit: Emit) -> None:
    Path("mine.json").write_text(json.dumps({**FILE, "torch_autocast": {"enabled": True}}))
    code, _, err = emit("--from", "mine.json", "-o", "better.json")
    assert code == 2
    assert "torch_autocast.enabled" in err
    assert not Path("better.json").exists()
