"""Runs the command line in this process, with a small estimate and no device unless a test gives one."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from dsplan import detect, verification
from dsplan import estimate as estimator
from dsplan.cli import main
from tests.measurements import dry_record, rank_record
from tests.report import estimates


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    code: int
    out: str
    err: str

    def error(self) -> str:
        """The one line on standard error of a command that was refused."""
        assert self.code == 2
        assert self.err.startswith("dsplan: error: ")
        assert self.err.count("\n") == 1
        assert self.err.endswith("\n")
        assert "Traceback" not in self.err
        assert self.out == ""
        return self.err


Run = Callable[..., Outcome]


@pytest.fixture(autouse=True)
def no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests see the same machine everywhere."""
    monkeypatch.setattr(detect, "local_accelerator", lambda: None)
    monkeypatch.setattr(detect, "local_gpu_count", lambda: 0)
    monkeypatch.setattr(detect, "host_memory_bytes", lambda: 2**40)
    monkeypatch.setattr("dsplan.verify_device._DRIVER_FILES", {"cuda": (), "hpu": ()})
    for name in ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """``run("estimate", "--params", "45B")``; the formulas are replaced by tests.report.estimates."""
    strategies = ModuleType("dsplan.strategies")
    strategies.standard_plans = estimates.standard_plans  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "dsplan.strategies", strategies)
    monkeypatch.setattr(estimator, "estimate", estimates.estimate, raising=False)

    def command(*arguments: str) -> Outcome:
        capsys.readouterr()
        code = main(arguments)
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return command


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[dict[str, Any]]]:
    """Put an outcome in the place of a verification's run; the specifications that it was given come back."""

    def install(outcome: BaseException | list[dict[str, Any]] | None = None) -> list[dict[str, Any]]:
        seen: list[dict[str, Any]] = []

        def run(spec_path: Path, output_dir: Path, *, timeout_s: float, on_progress: Any) -> list[dict[str, Any]]:
            spec = json.loads(spec_path.read_text())
            seen.append(spec | {"folder": str(output_dir), "timeout_s": timeout_s})
            dry = spec["device"] == "fake"
            on_progress({"event": "stage", "text": "building"})
            on_progress({"event": "step", "step": 1, "steps": 4, "loss": None if dry else 5.0})
            if isinstance(outcome, BaseException):
                raise outcome
            made = [dry_record(spec["rank"], spec["gpus"])] if dry else [rank_record(0), rank_record(1)]
            return outcome or made

        monkeypatch.setattr(verification, "run_verification", run)
        monkeypatch.setattr("dsplan.runner_process.require_run_extra", lambda: None)
        return seen

    return install
