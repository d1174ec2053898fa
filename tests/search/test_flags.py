"""What is refused names the flag that was given."""

from __future__ import annotations

from pathlib import Path

import pytest

from dsplan.cli import main
from dsplan.errors import EXIT_BAD_INPUT

A100 = ("--gpu", "a100-40gb")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("recommend", *A100, "--objective", "fast"), "--objective: unknown value 'fast'"),
        (("recommend", *A100, "--plot", "front.png"), "--plot: front.png has the suffix '.png'; allowed: .svg"),
        (("recommend", *A100, "--headroom", "1TB"), "--headroom: 931.32 GiB is not allowed"),
        (("sweep", "--gpu-types", "a100-40gb,h10"), "--gpu-types: unknown name 'h10'; did you mean h100"),
        (("sweep", *A100, "--gpu-counts", "1,x"), "--gpu-counts: 'x' is not allowed"),
        (("fit",), "--gpu: what fits depends on the device"),
        (("fit", *A100, "--what", "layers"), "--what: unknown value 'layers'"),
    ],
)
def test_the_flag_is_named(
    arguments: tuple[str, ...], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    command, *options = arguments
    assert main([command, "--model", "gpt2", *options]) == EXIT_BAD_INPUT
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_drive_that_is_not_there_is_not_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = tmp_path / "missing"
    arguments = ["--device", "cpu", "--nvme-path", str(missing), "-o", str(tmp_path / "p.json")]
    assert main(["verify", "--calibrate", *arguments]) == EXIT_BAD_INPUT
    assert f"--nvme-path: {missing} is no folder" in capsys.readouterr().err
