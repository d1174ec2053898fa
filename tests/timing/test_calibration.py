"""Calibration as planning calls it: in a process of its own, whose end is told."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from dsplan import child_process
from dsplan.errors import InputError, MissingExtraError, RunError
from dsplan.timing import calibration
from tests.timing.profiles import document


def _pretend(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    monkeypatch.setattr(calibration, "_command", lambda: [sys.executable, "-c", code])
    monkeypatch.setattr(calibration, "require_run_extra", lambda _: None)


def test_the_profile_is_read_back_and_progress_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = tmp_path / "made.json"
    made.write_text(json.dumps(document()))
    code = f"import sys, shutil; print('linear: 3 rows', file=sys.stderr); shutil.copy({str(made)!r}, sys.argv[1])"
    _pretend(monkeypatch, code)
    lines: list[str] = []
    output = tmp_path / "p.json"
    found = calibration.run_calibration(output, device="cpu", gpus=1, on_progress=lines.append)
    assert found.name == "made-up"
    assert lines == ["linear: 3 rows"]
    with pytest.raises(InputError, match="--force"):
        calibration.run_calibration(output, device="cpu", gpus=1)


@pytest.mark.parametrize(
    ("code", "error", "message"),
    [
        (
            "import sys; print('a rank failed', file=sys.stderr); sys.exit(5)",
            RunError,
            "exit code 5.*\n.*a rank failed",
        ),
        ("import sys; print('calibrate: no folder', file=sys.stderr); sys.exit(2)", InputError, "^no folder$"),
    ],
)
def test_how_it_failed_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, error: type[Exception], message: str
) -> None:
    _pretend(monkeypatch, code)
    with pytest.raises(error, match=message):
        calibration.run_calibration(tmp_path / "p.json", device="cpu", gpus=1)


def test_without_torch_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child_process.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"needs torch, deepspeed, psutil.*dsplan\[run\]"):
        calibration.run_calibration(tmp_path / "p.json", device="cpu", gpus=1)
