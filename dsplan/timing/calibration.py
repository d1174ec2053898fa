"""Measure this machine in a process of its own, as planning loads no torch: ``python -m runner.calibrate``."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from dsplan.errors import EXIT_BAD_INPUT, InputError, MissingExtraError, RunError
from dsplan.files import require_target
from dsplan.pythonpath import pythonpath
from dsplan.timing.profile import Profile, read_profile

DEVICES = ("cuda", "cpu")
_NEEDED = ("torch", "deepspeed", "psutil")


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
    missing = [package for package in _NEEDED if importlib.util.find_spec(package) is None]
    if missing:
        raise MissingExtraError(
            f"a calibration needs {', '.join(missing)}, not installed for {sys.executable};"
            " install it with: pip install 'dsplan[run]'"
        )
    options = ["--device", device, "--gpus", str(gpus), "--force"]
    options += [] if name is None else ["--name", name]
    options += [] if nvme_path is None else ["--nvme-path", str(nvme_path.absolute())]
    env = {**os.environ, "PYTHONPATH": pythonpath(("dsplan", "runner"), os.environ.get("PYTHONPATH", ""))}
    env["DSPLAN_PARENT_PID"] = str(os.getpid())  # the measurement ends itself when this process is gone
    with (
        tempfile.TemporaryDirectory() as folder,  # the current folder may hold a runner of its own
        subprocess.Popen(
            [*_command(), str(output.absolute()), *options],
            env=env,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        ) as process,
    ):
        lines = []
        assert process.stderr is not None
        for line in process.stderr:
            lines.append(line.rstrip())
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
