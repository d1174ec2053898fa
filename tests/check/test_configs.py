"""The mistakes of public tutorials are found at their line; valid configurations give no error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dsplan.check.configuration import Run
from dsplan.check.run import check_files
from dsplan.model import ModelShape

from .mutations import CONFIGS, for_accelerate, for_hf, valid

ELEVEN_MILLION = ModelShape(
    name="small", num_layers=6, hidden_size=384, num_attention_heads=6, vocab_size=500, max_position_embeddings=256
)
#: File -> the run, and every finding that it must give: rule and line.
MISTAKES: dict[str, tuple[dict[str, Any], list[tuple[str, int]]]] = {
    "bucket_name.json": ({}, [("DS101", 5)]),
    "nested_fp16.json": ({}, [("DS102", 5)]),
    "comments.json": ({}, [("DS002", 2), ("DS002", 4)]),
    "quoted_true.json": ({}, [("DS201", 4)]),
    "cpu_offload.json": ({}, [("DS104", 5)]),
    "heading.md": ({}, [("DS901", 12)]),
    "large_bucket.json": ({"model": ELEVEN_MILLION}, [("DS801", 5)]),
    "truncated.json": ({}, [("DS001", 8)]),
    "batch_sizes.json": ({"world_size": 8}, [("DS301", 2)]),
    "offload_param.json": ({}, [("DS401", 5)]),
    "clipping.json": ({}, [("DS101", 3)]),
    "optimizer.json": ({}, [("DS501", 4)]),
}


def test_there_is_a_file_for_every_mistake() -> None:
    assert {path.name for path in (CONFIGS / "mistakes").iterdir()} == MISTAKES.keys()


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_found_at_its_line(name: str) -> None:
    options, expected = MISTAKES[name]
    found = check_files([CONFIGS / "mistakes" / name], Run(**options)).findings
    assert [(finding.rule.id, finding.line) for finding in found if finding.severity != "note"] == expected


def test_the_bucket_is_said_to_cost_1_86_gib() -> None:
    assert 10e6 < ELEVEN_MILLION.num_parameters < 12e6
    findings = check_files([CONFIGS / "mistakes" / "large_bucket.json"], Run(model=ELEVEN_MILLION)).findings
    (message,) = [finding.message for finding in findings if finding.rule.id == "DS801"]
    assert "1.86 GiB in fp32" in message


@pytest.mark.parametrize("path", valid(), ids=lambda path: path.stem)
def test_a_valid_configuration_gives_nothing(path: Path) -> None:
    findings = check_files([path], Run(world_size=8)).findings
    assert [finding for finding in findings if finding.severity != "note"] == []


@pytest.mark.parametrize("path", for_hf(), ids=lambda path: path.stem)
def test_auto_is_the_trainers_business_and_nobody_elses(path: Path) -> None:
    trainer = check_files([path], Run(consumer="hf", world_size=8)).findings
    assert {finding.severity for finding in trainer} == {"note"}
    assert "DS602" in {finding.rule.id for finding in trainer}
    script = check_files([path], Run()).findings
    assert {finding.rule.id for finding in script if finding.severity == "error"} == {"DS601"}


@pytest.mark.parametrize("path", for_accelerate(), ids=lambda path: path.name)
def test_what_accelerate_completes_is_valid_for_it(path: Path) -> None:
    checked = check_files([path], Run(consumer="accelerate", world_size=8))
    assert checked.configurations == 1
    assert [finding for finding in checked.findings if finding.severity != "note"] == []


def test_there_are_enough_of_them() -> None:
    assert len(valid()) >= 55
    assert len(for_hf()) >= 5
    assert len(for_accelerate()) >= 6


def test_they_are_different() -> None:
    texts = [path.read_text(encoding="utf-8") for path in (*valid(), *for_hf(), *for_accelerate())]
    assert len(set(texts)) == len(texts)
