"""Measure this machine in a process of its own, as planning loads no torch: ``python -m runner.calibrate``."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from dsplan.child_process import require_run_extra, supervised
from dsplan.errors import EXIT_BAD_INPUT, InputError, RunError
from dsplan.files import require_target
from dsplan.timing.profile import Profile, read_profile

DEVICES = ("cuda", "cpu")


def run_calibration(
    output: Path,
    *,
    device: str,
    gpus: int,
    name: str | None = None,
    nvme_path: Path | None = None,
    force: bool = False,
    on_progress: Callable[[str], None] = lambda _: None,
) -> Profile:
    """Measure ``gpus`` devices of this machine and keep the profile in ``output``, which grows with every part.

    Args:
        output: the profile's file.
        device: one of :data:`DEVICES`.
        gpus: ranks between which collectives are measured.
        name: of the profile; the device's by default.
        nvme_path: folder on a drive to measure.
        force: overwrite ``output``.
        on_progress: called with a line of text per part.

    Raises:
        InputError: ``output`` may not be written, or the measurement was refused.
        MissingExtraError: torch, deepspeed or psutil is not installed.
        RunError: the measurement failed; what was measured until then is in ``output``.
    """
    require_target(output, force=force)
    require_run_extra("a calibration")
    options = ["--device", device, "--gpus", str(gpus), "--force"]
    options += [] if name is None else ["--name", name]
    options += [] if nvme_path is None else ["--nvme-path", str(nvme_path.absolute())]
    lines: list[str] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        supervised([*_command(), str(output.absolute()), *options], Path(folder), subprocess.STDOUT) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line.decode(errors="replace").rstrip())
            on_progress(lines[-1])
        code = process.wait()
    if code == EXIT_BAD_INPUT:
        raise InputError((lines or ["calibrate: refused"])[-1].removeprefix("calibrate: "))
    if code:
        said = "\n".join(f"  | {line}" for line in lines[-15:])
        raise RunError(f"the calibration ended with exit code {code}; its last lines:\n{said}", code)
    return read_profile(output)


def _command() -> list[str]:
    return [sys.executable, "-m", "runner.calibrate"]
