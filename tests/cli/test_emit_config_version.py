"""``emit-config --deepspeed-version``: the same plan, said so that another release understands it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dsplan.cli import main
from dsplan.dsconfig import deepspeed_parser
from dsplan.dsconfig.read import read_ds_config
from dsplan.dsconfig.versions import knows, supported_versions
from dsplan.records import mistakes

COMMAND = ["emit-config", "--model", "gpt2", "--gpus", "4", "--gpu", "h200"]
#: Of the releases that are known.
OLDEST, NEWEST = supported_versions()[0], supported_versions()[-1]


@pytest.fixture(autouse=True)
def unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    """DeepSpeed's parser, which takes seconds to start, is asked elsewhere."""
    monkeypatch.setattr(deepspeed_parser, "check_with_deepspeed", lambda *_: None)


def emitted(capsys: pytest.CaptureFixture[str], path: Path, *arguments: str) -> dict[str, Any]:
    assert main([*COMMAND, "-o", str(path), "--json", *arguments]) == 0
    document = json.loads(capsys.readouterr().out)
    assert mistakes("emit_config", document) == []
    assert isinstance(document, dict)
    return document


def keys(document: dict[str, Any], path: str = "") -> list[str]:
    found = []
    for key, value in document.items():
        found.append(f"{path}{key}")
        if isinstance(value, dict):
            found += keys(value, f"{path}{key}.")
    return found


@pytest.mark.parametrize("format_name", ["deepspeed", "hf", "accelerate", "lightning"])
@pytest.mark.parametrize("version", [OLDEST, "0.12.6", "0.16.9"])
def test_an_older_release_knows_every_key(
    version: str, format_name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "ds_config.json"
    document = emitted(
        capsys, path, "--strategy", "zero3-offload", "--deepspeed-version", version, "--format", format_name
    )
    assert document["deepspeed_version"] == version
    assert document["version_changes"]
    assert [key for key in keys(document["config"]) if not knows(key, version)] == []


def test_it_stays_the_same_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    emitted(capsys, old, "--strategy", "zero2", "--deepspeed-version", OLDEST)
    emitted(capsys, new, "--strategy", "zero2")
    before, after = (json.loads(path.read_text()) for path in (old, new))
    assert before["zero_optimization"]["reduce_bucket_size"] == after["zero_optimization"]["reduce_bucket_size"]
    assert before["scheduler"]["type"] == "WarmupDecayLR"  # the cosine came with 0.12.3
    assert before["scheduler"]["params"]["warmup_max_lr"] == before["optimizer"]["params"]["lr"]
    assert after["scheduler"]["type"] == "WarmupCosineLR"
    plans = [read_ds_config(path, world_size=4) for path in (old, new)]
    assert plans[0].plan.zero == plans[1].plan.zero
    assert plans[0].workload == plans[1].workload


def test_the_newest_release_needs_no_difference(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = emitted(capsys, tmp_path / "a.json", "--deepspeed-version", NEWEST)
    assert document["version_changes"] == []
    assert emitted(capsys, tmp_path / "b.json")["config"] == document["config"]
    assert document["deepspeed_version"] == NEWEST
    assert main([*COMMAND, "-o", str(tmp_path / "c.json"), "--deepspeed-version", NEWEST]) == 0
    assert f"For DeepSpeed {NEWEST}: no differences" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--deepspeed-version", "0.8.0"],
            f"--deepspeed-version: '0.8.0' is not allowed; it must be a release from {OLDEST}",
        ),
        (["--deepspeed-version", "new"], "--deepspeed-version: 'new' is not allowed"),
        (["--optimizer", "lion", "--strategy", "zero2", "--deepspeed-version", OLDEST], "optimizer.type"),
    ],
)
def test_what_a_release_cannot_do_is_refused(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "ds_config.json"
    assert main([*COMMAND, "-o", str(path), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not path.exists()
