"""Calibration on the CPU: its rows are what a profile wants, and failures of its ranks are told."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
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
    assert len(waits) == 3  # they are alike
    assert all(1e-4 <= wait <= 1e-2 for wait in waits)


def test_a_drive_is_measured_and_left_as_it_was(tmp_path: Path) -> None:
    from runner.calibrate_links import drive

    row = drive(tmp_path, size=2**23)
    assert row["read_bytes_per_s"] > 0
    assert list(tmp_path.iterdir()) == []


def test_the_smallest_host_operators_are_taken_twice_and_the_shorter_time_counts(
    bench: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    from runner import calibrate_links
    from runner.calibrate_kernels import Bench

    assert isinstance(bench, Bench)
    taken: list[int] = []

    def pretended(_bench: object, elements: int, threads: int) -> list[dict[str, object]]:
        taken.append(elements)
        seconds = 6e-3 if len(taken) == 1 else 1e-8 * elements
        return [{"operator": "cpu_adam", "elements": elements, "seconds": seconds, "threads": threads}]

    monkeypatch.setattr(calibrate_links, "_host_operators", pretended)
    monkeypatch.setattr(calibrate_links.torch, "get_num_threads", lambda: 1)
    rows = list(calibrate_links.host_operators(bench))
    assert taken == [2**16, 2**18, 2**16]
    assert [(row["elements"], row["seconds"]) for row in rows] == [(2**16, 1e-8 * 2**16), (2**18, 1e-8 * 2**18)]


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

    monkeypatch.setattr(calibrate, "_child", lambda *_: [sys.executable, "-c", "raise SystemExit('no such thing')"])
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
    alone = {**made, "collectives": []}
    del alone["engine"]  # it was killed
    together = {**made, "engine": made["engine"][:1]}

    class Part:
        waiting = True

        def __init__(self, ranks: int) -> None:
            self.ranks = ranks

        def follow(self, _say: object, changed: Callable[[object], None], *, deadline: float) -> dict[str, object]:
            assert deadline > 0
            if self.ranks == 1:
                changed(alone)
                raise RunError("a rank failed", 5)
            return together

        def end(self) -> None:
            ended.append(self.ranks)

    ended: list[int] = []
    monkeypatch.setattr(calibrate, "_started", lambda _device, ranks, *_: Part(ranks))
    monkeypatch.setattr(calibrate, "_compilers", lambda *_: [])
    kept: list[dict[str, object]] = []
    with pytest.raises(RunError, match="a rank failed"):
        calibrate.calibrate(device="cpu", gpus=2, on_partial=kept.append)  # type: ignore[arg-type]
    assert kept[0]["collectives"] == []
    assert kept[-1]["collectives"] == made["collectives"]
    assert kept[-1]["linear"] == made["linear"]
    assert kept[-1]["engine"] == made["engine"][:1]
    assert sorted(ended) == [1, 2]


@pytest.mark.parametrize(("seconds", "taken"), [([1.0, 1.01, 1.0, 9.0], 3), ([1.0, 2.0, 1.0, 1.0, 1.5, 9.0], 5)])
def test_series_are_taken_until_they_lie_close_together(seconds: list[float], taken: int) -> None:
    from runner.calibrate_kernels import _settled

    left = iter(seconds)
    assert _settled(lambda: next(left)) == 1.0
    assert len(list(left)) == len(seconds) - taken


#: Ranks that write what they were told: ready, then, when it is their turn, a document.
_WAITING = """
import os, pathlib, sys, time
output, turn = map(pathlib.Path, sys.argv[1:])
(turn.parent / f"ready-{os.environ['WORLD_SIZE']}-{os.environ['RANK']}").touch()
while not turn.exists():
    time.sleep(0.01)
if os.environ["RANK"] == "0":
    output.write_text('{"turn": true}')
    print("linear: 1 rows, 0.0 s, until 1 s", flush=True)
"""


def test_ranks_wait_for_their_turn(tmp_path: Path) -> None:
    from runner.calibrate_ranks import Ranks

    def command(output: Path, turn: Path) -> list[str]:
        return [sys.executable, "-c", _WAITING, str(output), str(turn)]

    ranks = Ranks(command, device="cpu", ranks=2, folder=tmp_path)
    try:
        until = time.monotonic() + 20
        while not ranks.waiting and time.monotonic() < until:
            time.sleep(0.02)
        assert sorted(path.name for path in tmp_path.glob("ready-*")) == ["ready-2-0", "ready-2-1"]
        assert not (tmp_path / "ranks-2.json").exists()
        said: list[str] = []
        changed: list[object] = []
        assert ranks.follow(said.append, changed.append, deadline=until) == {"turn": True}
        assert said == ["linear: 1 rows, 0.0 s, until 1 s"]
        assert changed == [{"turn": True}]
    finally:
        ranks.end()


def test_ranks_that_never_end_are_ended(tmp_path: Path) -> None:
    from runner.calibrate_ranks import Ranks

    ranks = Ranks(
        lambda *_: [sys.executable, "-c", "import time; print('asleep', flush=True); time.sleep(60)"],
        device="cpu",
        ranks=1,
        folder=tmp_path,
    )
    while "asleep" not in (tmp_path / "ranks-1.log").read_text():
        time.sleep(0.02)
    with pytest.raises(RunError, match=r"did not end in time.*\n.*asleep"):
        ranks.follow(lambda _: None, lambda _: None, deadline=0.0)
    begun = time.monotonic()
    ranks.end()
    assert time.monotonic() - begun < 10
    assert ranks._children[0].returncode is not None


def test_an_operator_that_is_compiled_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from runner import calibrate_compile, compiling

    loaded: list[str] = []
    monkeypatch.setattr(calibrate_compile, "load", loaded.append)
    monkeypatch.setattr(compiling, "announce_compilation", lambda *_, **__: None)
    monkeypatch.setattr(compiling, "extension_folder", lambda name: tmp_path / name)
    for there in (False, True):
        (tmp_path / "cpu_adam").mkdir(exist_ok=True)
        if there:
            (tmp_path / "cpu_adam" / "cpu_adam.so").touch()
        monkeypatch.setattr(sys, "argv", ["calibrate_compile", "cpu_adam"])
        calibrate_compile.main()
    assert loaded == ["cpu_adam"]
