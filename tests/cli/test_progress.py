"""The bar is for people who wait: on a terminal, once the work takes a while."""

from __future__ import annotations

import sys

import pytest

from dsplan.cli import progress as module
from dsplan.cli.progress import progress, waiting


def work() -> None:
    with progress("Estimating") as advance:
        advance(1, 2)
        advance(2, 2)
    with waiting("Asking"):
        pass


def test_nothing_is_drawn_in_a_pipe(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DELAY_SECONDS", 0.0)
    work()
    assert capsys.readouterr() == ("", "")


def test_quick_work_draws_no_bar(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with progress("Estimating") as advance:
        advance(1, 1)
    assert capsys.readouterr() == ("", "")


def test_a_bar_on_a_terminal_goes_to_standard_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(module, "DELAY_SECONDS", 0.0)
    monkeypatch.setenv("TERM", "xterm")
    work()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Estimating" in captured.err
