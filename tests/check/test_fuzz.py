"""No file makes a check stop, hang or take long."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dsplan.catalogue import accelerator, preset
from dsplan.check.configuration import Run
from dsplan.check.run import Checked, check_files
from dsplan.dsconfig.consumers import CONSUMERS
from dsplan.hardware import Cluster
from dsplan.report.findings import REPORTS

from .corruption import cases

#: The inputs are taken in turns by the runs: with and without ranks, model, device and notes.
INPUTS, PARTS, SEED = 20_000, 8, 2026
#: A check takes about 1 ms, with a model up to 20; the issue asks for less than 50.
LONGEST_S = 0.05
_TRIES = 5
_REPORTED = 25  # one in so many is written in every format, too
_SUFFIXES = (".json", ".md", ".yaml")
_RUNS = (
    Run(),
    Run(world_size=8),
    Run(consumer="hf", world_size=8),
    Run(consumer="accelerate", world_size=3, model=preset("gpt2")),
    Run(consumer="lightning", world_size=1, model=preset("gpt-mini"), notes=True),
    Run(world_size=4, model=preset("gpt-mini"), cluster=Cluster(accelerator=accelerator("a100-40gb"), gpus_per_node=4)),
)


@contextmanager
def no_collection() -> Iterator[None]:
    """No garbage is collected in between: what other tests left behind is not the check's time."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def checked_in_time(path: Path, run: Run) -> tuple[Checked, float]:
    """What comes out, and the processor time; one that is over the limit gets more tries, as the machine is shared."""
    best = float("inf")
    for _ in range(_TRIES):
        with no_collection():
            before = time.process_time()
            checked = check_files([path], run)
            best = min(best, time.process_time() - before)
        if best < LONGEST_S:
            break
    return checked, best


@pytest.mark.timeout(300)
@pytest.mark.parametrize("part", range(PARTS))
def test_damaged_files_are_reported_on(part: int, tmp_path: Path) -> None:
    count, slow, found = INPUTS // PARTS, [], 0
    for number, case in enumerate(cases(count, SEED + part)):
        path = tmp_path / f"ds_config{case.suffix}"
        path.write_bytes(case.content)
        try:
            checked, seconds = checked_in_time(path, _RUNS[number % len(_RUNS)])
        except Exception as error:
            raise AssertionError(f"{case.what} of seed {SEED + part}: {case.content[:2000]!r}") from error
        if seconds >= LONGEST_S:
            slow.append(f"{case.what}: {seconds * 1000:.0f} ms")
        lines = case.content.count(b"\n") + 1
        for finding in checked.findings:
            found += 1
            assert finding.path != path or 1 <= finding.line <= lines, case.what
            assert finding.column >= 1
        if number % _REPORTED == 0:
            assert all(report(checked, checked.findings) for report in REPORTS.values())
    assert slow == []
    assert found > count


def test_the_damage_is_the_same_every_time() -> None:
    first, again, other = (list(cases(60, seed)) for seed in (1, 1, 2))
    assert first == again != other
    assert len({case.what.partition(": ")[2] for case in first}) >= 10
    assert {case.suffix for case in first} >= {".json", ".md", ".yaml"}


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
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


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(document=_JSON, number=st.integers(0, len(_RUNS) - 1))
def test_any_values_at_known_keys_are_reported_on(document: Any, number: int, tmp_path: Path) -> None:
    path = tmp_path / "ds.json"
    path.write_text(json.dumps(document))
    check_files([path], _RUNS[number])


def test_bytes_that_are_no_text_are_a_finding(tmp_path: Path) -> None:
    path = tmp_path / "ds.json"
    path.write_bytes(b'{"a": "\xff\xfe"}')
    (finding,) = check_files([path], Run()).findings
    assert finding.rule.id == "DS001"
