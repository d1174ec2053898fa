"""Against DeepSpeed's own parser: what it refuses is an error, and what is said to be refused it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from dsplan.check.configuration import Run
from dsplan.check.run import check_files
from dsplan.dsconfig.deepspeed_parser import ParserResult, check_all_with_deepspeed

from .mutations import CONFIGS, for_accelerate, for_hf, mutated, valid

pytestmark = pytest.mark.engine

RANKS = 8
ROOT = Path(__file__).parents[2]
CASES = 1500


def opinions(paths: list[Path]) -> list[ParserResult]:
    results = check_all_with_deepspeed(paths, RANKS)
    if results is None:
        pytest.skip("DeepSpeed is not installed")
    return results


def test_deepspeed_takes_every_valid_configuration() -> None:
    refused = [f"{result.path.name}: {result.error}" for result in opinions(valid()) if not result.accepted]
    assert refused == []


def test_deepspeed_refuses_some_mistakes_and_takes_others_without_a_word() -> None:
    folder = CONFIGS / "mistakes"
    results = opinions([path for path in sorted(folder.iterdir()) if path.suffix == ".json"])
    assert {result.path.stem for result in results if not result.accepted} == {
        *("bucket_name", "nested_fp16", "truncated", "batch_sizes"),
    }


def test_what_the_frameworks_make_of_theirs_deepspeed_takes(tmp_path: Path) -> None:
    """transformers and accelerate fill every "auto" in; DeepSpeed and the check find nothing wrong with the rest."""
    if find_spec("transformers") is None or find_spec("accelerate") is None:
        pytest.skip("transformers or accelerate is not installed")
    paths = [path for path in (*for_hf(), *for_accelerate()) if path.suffix == ".json"]
    command = [sys.executable, "-m", "tests.check.complete", str(tmp_path), *map(str, paths)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    completed = [tmp_path / path.name for path in paths]
    assert [f"{result.path.name}: {result.error}" for result in opinions(completed) if not result.accepted] == []
    findings = check_files(completed, Run(world_size=RANKS)).findings
    assert [finding for finding in findings if finding.severity == "error"] == []
    assert not any('"auto"' in path.read_text(encoding="utf-8") for path in completed)


def test_what_deepspeed_refuses_is_an_error(tmp_path: Path) -> None:
    """Changed configurations: a check without errors means that DeepSpeed's parser takes the file."""
    cases, paths = list(mutated(CASES, seed=2026)), []
    for number, (_, document) in enumerate(cases):
        paths.append(tmp_path / f"{number}.json")
        paths[-1].write_text(json.dumps(document, indent=1))
    missed, claimed, refused = [], [], 0
    for (what, document), result in zip(cases, opinions(paths), strict=True):
        findings = check_files([result.path], Run(world_size=RANKS)).findings
        errors = [finding for finding in findings if finding.severity == "error"]
        refused += not result.accepted
        if not result.accepted and not errors:
            missed.append(f"{what}: {result.error}")
        # pydantic's sections lose a key whose value is "auto" before they look at its name.
        if result.accepted and "auto" not in json.dumps(document):
            claimed += [f"{what}: {finding.message}" for finding in errors if "refuses it here" in finding.message]
    assert missed == []
    assert claimed == []
    assert refused > CASES // 10
