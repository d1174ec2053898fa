"""Calibration on the CPU: its rows are what a profile wants, and failures of its ranks are told."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest

from dsplan.errors import EXIT_BAD_INPUT, RunError
from dsplan.records import mistakes
from tests.timing import profiles

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def bench() -> object:
    from runner.calibrate_kernels import Bench
    from runner.device import open_device
    from runner.spec import RunSpec

    device = open_device(RunSpec(model={}, ds_config={}, sequence_length=1))
    return Bench(device=device, largest=2**16, deadline=time.monotonic() + 60, small=True)


def test_rows_of_kernels_are_valid_in_a_profile(bench: object) -> None:
    from itertools import islice

    from runner import calibrate_kernels as kernels
    from runner.calibrate_kernels import Bench

    assert isinstance(bench, Bench)
    made = {
        **profiles.document(),
        "linear": list(islice(kernels.linear(bench, "fp32"), 2)),
        "products": list(islice(kernels.products(bench, "fp32"), 1)),
        "fused_attention": list(islice(kernels.fused_attention(bench, "fp32"), 2)),
        "elementwise": list(kernels.elementwise(bench, "fp32")),
        "launch": list(kernels.launches(bench)),
    }
    assert mistakes("profile", made) == []
    measured = {row["operator"] for row in made["elementwise"]}
    assert measured == set(profiles.OPERATORS)


def test_a_kernel_is_timed_by_the_devices_clock_behind_a_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pretended device: its clock goes on by the cycles that it waits and by 3 ms a call."""
    from types import SimpleNamespace

    import torch

    from runner.calibrate_kernels import _CYCLES_PER_S, Bench

    clock = [0.0]
    waits: list[float] = []

    class Event:
        def __init__(self, *, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.at = clock[0]

        def elapsed_time(self, other: Event) -> float:
            return 1e3 * (other.at - self.at)

    def sleep(cycles: int) -> None:
        waits.append(cycles / _CYCLES_PER_S)
        clock[0] += waits[-1]

    def call() -> None:
        clock[0] += 3e-3

    device = SimpleNamespace(torch_device=lambda: torch.device("cuda"), synchronize=lambda: None)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "_sleep", sleep)
    bench = Bench(device=device, largest=1, deadline=0.0)  # type: ignore[arg-type]
    assert bench.device_seconds(call) == pytest.approx(3e-3)
    assert len(waits) == 5
    assert all(1e-4 <= wait <= 1e-2 for wait in waits)


def test_a_drive_is_measured_and_left_as_it_was(tmp_path: Path) -> None:
    from runner.calibrate_links import drive

    row = drive(tmp_path, size=2**23)
    assert row["read_bytes_per_s"] > 0
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_measured_once_the_time_is_up(bench: object) -> None:
    from dataclasses import replace

    from runner import calibrate_kernels as kernels
    from runner.calibrate_kernels import Bench

    assert isinstance(bench, Bench)
    late = replace(bench, deadline=0.0)
    assert list(kernels.linear(late, "fp32")) == []
    assert list(kernels.elementwise(late, "fp32")) == []


def test_a_failing_rank_is_told_with_its_last_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    from runner import calibrate

    monkeypatch.setattr(calibrate, "_command", lambda *_: [sys.executable, "-c", "raise SystemExit('no such thing')"])
    with pytest.raises(RunError, match=r"a rank failed.*\n.*no such thing"):
        calibrate.calibrate(device="cpu", gpus=1, seconds=1)


def test_an_existing_profile_is_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from runner import calibrate

    (tmp_path / "p.json").write_text(json.dumps({}))
    assert calibrate.main([str(tmp_path / "p.json"), "--device", "cpu"]) == EXIT_BAD_INPUT
    assert "--force" in capsys.readouterr().err


def test_what_one_part_lacks_takes_nothing_from_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    from runner import calibrate

    made = {key: value for key, value in profiles.document().items() if key not in ("name", "created", "gpus")}
    alone = {**made, "engine": [], "collectives": []}
    together = {**made, "engine": made["engine"][:1]}

    def part(_device: str, ranks: int, *rest: object) -> dict[str, object]:
        changed = rest[-1]
        assert callable(changed)
        if ranks == 1:
            changed(alone)
            raise RunError("a rank failed", 5)
        return together

    monkeypatch.setattr(calibrate, "_part", part)
    kept: list[dict[str, object]] = []
    with pytest.raises(RunError, match="a rank failed"):
        calibrate.calibrate(device="cpu", gpus=2, on_partial=kept.append)
    assert kept[0]["collectives"] == []
    assert kept[-1]["collectives"] == made["collectives"]
    assert kept[-1]["linear"] == made["linear"]
    assert kept[-1]["engine"] == made["engine"][:1]
