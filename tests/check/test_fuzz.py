"""No text makes a check stop, hang or take long."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dsplan.catalogue import preset
from dsplan.check.configuration import CONSUMERS, Run
from dsplan.check.run import check_files
from dsplan.report.findings import REPORTS

from .mutations import CONFIGS, for_hf, mutated, valid

_TEXTS = [path.read_text(encoding="utf-8") for path in (*valid(), *for_hf(), *sorted((CONFIGS / "mistakes").iterdir()))]
_PIECES = (
    '"',
    "'",
    "{",
    "}",
    "[",
    "]",
    ":",
    ",",
    "\n",
    "#",
    "/*",
    "//",
    "'''",
    "\\",
    "\x00",
    "é",
    "5e8",
    "true",
    "auto",
    "-",
)
_RUNS = [Run(consumer=consumer, world_size=world, model=model) for consumer, world, model in (
    ("deepspeed", None, None), ("hf", 8, None), ("accelerate", 3, preset("gpt2")), ("lightning", 1, preset("gpt-mini")),
)]  # fmt: skip
_SUFFIXES = (".json", ".md", ".yaml")
#: The issue's bound is 50 ms; a busy machine gets some room.
_LONGEST_S = 0.25


def damaged(seed: int) -> str:
    """A configuration with a few pieces cut out, put in, doubled or replaced."""
    chance = random.Random(seed)
    text = chance.choice(_TEXTS)
    for _ in range(chance.randint(1, 6)):
        at, length = chance.randrange(len(text) + 1), chance.choice((0, 1, 1, 5, 40))
        put = chance.choice((*_PIECES, "", "", text[at : at + 30] * 2))
        text = text[:at] + put + text[at + length :]
    return text


@pytest.mark.parametrize("suffix", _SUFFIXES)
def test_damaged_files_are_reported_on(suffix: str, tmp_path: Path) -> None:
    path, slowest = tmp_path / f"ds{suffix}", 0.0
    for seed in range(200):
        text = damaged(seed)
        path.write_text(f"## ZeRO-3\n```json\n{text}\n```\n" if suffix == ".md" else text, encoding="utf-8")
        before = time.process_time()
        checked = check_files([path], _RUNS[seed % len(_RUNS)])
        slowest = max(slowest, time.process_time() - before)
        for finding in checked.findings:
            assert 1 <= finding.line <= text.count("\n") + 5
            assert finding.column >= 1
        for report in REPORTS.values():
            assert report(checked, checked.findings)
    assert slowest < _LONGEST_S


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(), suffix=st.sampled_from(_SUFFIXES), consumer=st.sampled_from(CONSUMERS))
def test_any_text_is_reported_on(text: str, suffix: str, consumer: str, tmp_path: Path) -> None:
    path = tmp_path / f"ds{suffix}"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    check_files([path], Run(consumer=consumer, world_size=4))


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["auto", "cpu", "nvme", "AdamW", ""]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(
            [
                *("zero_optimization", "stage", "fp16", "bf16", "enabled", "optimizer", "scheduler", "type", "params"),
                *("offload_optimizer", "offload_param", "device", "nvme_path", "ratio", "train_batch_size", "betas"),
                *("train_micro_batch_size_per_gpu", "reduce_bucket_size", "tensor_parallel", "autotp_size", "lr"),
                *("data_efficiency", "data_sampling", "pipeline", "sequence_parallel_size", "compile", "data_types"),
            ]
        ),
        inner,
        max_size=5,
    ),
    max_leaves=20,
)  # fmt: skip


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(document=_JSON, number=st.integers(0, len(_RUNS) - 1))
def test_any_values_at_known_keys_are_reported_on(document: Any, number: int, tmp_path: Path) -> None:
    path = tmp_path / "ds.json"
    path.write_text(json.dumps(document))
    check_files([path], _RUNS[number])


def test_changed_configurations_are_reported_on(tmp_path: Path) -> None:
    path = tmp_path / "ds.json"
    for number, (_, document) in enumerate(mutated(300, seed=7)):
        path.write_text(json.dumps(document))
        check_files([path], _RUNS[number % len(_RUNS)])


def test_bytes_that_are_no_text_are_a_finding(tmp_path: Path) -> None:
    path = tmp_path / "ds.json"
    path.write_bytes(b'{"a": "\xff\xfe"}')
    (finding,) = check_files([path], Run()).findings
    assert finding.rule.id == "DS001"
