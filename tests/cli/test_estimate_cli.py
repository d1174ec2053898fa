"""dsplan estimate, as a person types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dsplan import __version__
from dsplan import estimate as estimator
from dsplan.errors import EXIT_INTERRUPTED
from dsplan.schemas import schema
from tests.cli.conftest import Run

GPT2 = ("estimate", "--model", "gpt2", "--gpu", "a100-80gb", "--gpus", "8")


def test_the_table(run: Run) -> None:
    done = run(*GPT2)
    assert (done.code, done.err) == (0, "")
    assert "* zero1 " in done.out
    assert "Recommended: zero1:" in done.out
    assert max(len(line) for line in done.out.splitlines()) <= 80


def test_json_is_valid_and_has_terms_only_when_explained(run: Run) -> None:
    import jsonschema

    for explain in ((), ("--explain",)):
        document = json.loads(run(*GPT2, "--json", *explain).out)
        jsonschema.validate(document, schema("estimate"))
        assert all(("terms" in plan) == bool(explain) for plan in document["plans"])
        assert document["recommended"] == "zero1"


def test_one_plan(run: Run) -> None:
    document = json.loads(run(*GPT2, "--plan", "ZERO3", "--json").out)
    assert [plan["name"] for plan in document["plans"]] == ["zero3"]


def test_explain_takes_the_recommended_plan(run: Run) -> None:
    done = run(*GPT2, "--explain")
    assert "zero1: peak of" in done.out
    assert "zero2: peak of" not in done.out
    assert "ZeRO arXiv:1910.02054" in done.out


def test_explain_takes_every_plan_when_none_is_recommended(run: Run) -> None:
    done = run("estimate", "--model", "gpt2", "--explain")
    assert "zero0: peak of" in done.out
    assert "zero3-nvme-ckpt: peak of" in done.out


def test_a_configuration(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text('{"train_batch_size": 16, "optimizer": {"type": "AdamW"}}', encoding="utf-8")
    document = json.loads(run(*GPT2, "--ds-config", str(path), "--json").out)
    [plan] = document["plans"]
    assert (plan["name"], plan["micro_batch_size"], plan["zero"]["stage"]) == ("mine", 2, 0)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("estimate", "--params 45B"),
        ("estimate --params 45Q", "--params: '45Q'"),
        ("estimate --model gtp2", "did you mean gpt2"),
        ("estimate --model gpt2 --gpu h20", "h200"),
        ("estimate --model gpt2 --precision fp17", "fp16"),
        ("estimate --model gpt2 --plan zero4", "--plan: unknown value 'zero4'; did you mean zero"),
        ("estimate --model gpt2 --gpus 0", "--gpus: 0"),
        ("estimate --model gpt2 --gpus -8", "--gpus: -8"),
        ("estimate --model gpt2 --gpus eight", "'--gpus'"),
        ("estimate --model gpt2 --gpus", "--gpus"),
        ("estimate --model gpt2 --micro-batch-size 1.5", "'--micro-batch-size'"),
        ("estimate --model gpt2 --seq-len 4096", "--seq-len: 4096"),
        ("estimate --n-layer 2 --n-head 3 --n-embd 64", "--n-head: 3 heads"),
        ("estimate --model gpt2 --params 45B", "--model gpt2"),
        ("estimate --model gpt2 --gpuz 8", "--gpus"),
        ("estimate --model gpt2 extra", "extra"),
        ("estimat --model gpt2", "estimat"),
        ("estimate --model gpt2 --ds-config none.json", "none.json"),
    ],
)
def test_bad_input_is_one_line(run: Run, arguments: str, said: str) -> None:
    assert said in run(*arguments.split()).error()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"train_batch_size": 8,\n  "zero_optimization": }', "line 2, column 24"),
        ("{}", "train_batch_size"),
        ('{"train_batch_size": 9, "optimizer": {"type": "AdamW"}}', "contradict"),
        ("[1]", "object"),
    ],
)
def test_a_bad_configuration_is_one_line(run: Run, tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(text, encoding="utf-8")
    error = run(*GPT2, "--optimizer", "adamw", "--ds-config", str(path)).error()
    assert said in error
    assert str(path) in error


def test_version_and_help(run: Run) -> None:
    assert run("--version").out == f"dsplan {__version__}\n"
    assert "--activation-checkpointing" in run("estimate", "--help").out
    nothing = run()
    assert nothing.code == 2
    assert "emit-config" in nothing.out


def test_interrupting(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(estimator, "estimate", interrupted, raising=False)
    done = run(*GPT2)
    assert done.code == EXIT_INTERRUPTED
    assert "Traceback" not in done.err
