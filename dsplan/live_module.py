"""A live torch module (``--module PACKAGE.FILE:FACTORY``): built on the meta device, in a process of its own.

The planner imports neither torch nor the user's code; ``python -m runner.meta`` does, and says what it found.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path, PurePath

from dsplan.errors import InputError
from dsplan.model import ModelShape
from dsplan.modelfile import shape_from_config
from dsplan.pythonpath import pythonpath
from dsplan.runner_process import require_run_extra

TIMEOUT_S = 300


def read_module(factory: str, *, folder: Path | None = None) -> ModelShape:
    """The shape of what ``factory`` makes; it is looked for in ``folder`` (the current one) and where Python looks.

    Raises:
        InputError: there is no such factory, it fails, or what it makes is no module with parameters to train.
        MissingExtraError: torch is not installed.
    """
    _refuse_path(factory)
    require_run_extra()
    folder = (folder or Path.cwd()).absolute()
    path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH", ""), str(folder)]))
    env = {**os.environ, "PYTHONPATH": pythonpath(("dsplan", "runner"), path)}
    try:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-m", "runner.meta", factory],
            cwd=folder,
            env=env,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise InputError(f"--module: {factory} took longer than {TIMEOUT_S} s") from error
    try:
        answer = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError) as error:
        last = next(reversed(done.stderr.splitlines()), "")
        raise InputError(f"--module: {factory} ended without an answer: {last[:300]}") from error
    if "error" in answer:
        raise InputError(answer["error"])
    if not any(trained for _, _, trained in answer["parameters"]):
        why = "no parameter of it is trained (requires_grad)" if answer["parameters"] else "it has no parameters"
        raise InputError(f"--module: {factory} makes nothing to train: {why}")
    return shape_from_config({**answer, "folder": str(folder)}, where=f"--module {factory}", name=factory)


def _refuse_path(factory: str) -> None:
    """Raise InputError, with the name that Python imports, for the path of a file."""
    file, colon, function = factory.rpartition(":")
    path = PurePath(file)
    if not colon or path.suffix != ".py":
        return
    parts = path.with_suffix("").parts
    if all(part.isidentifier() for part in parts):
        raise InputError(f"--module: {factory!r} names a file; write {'.'.join(parts)}:{function}")
    raise InputError(f"--module: {factory!r} names a file; in its folder write {path.stem}:{function}")
