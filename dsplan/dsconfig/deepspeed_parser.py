"""Asking DeepSpeed's own parser, in a subprocess, when DeepSpeed is installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dsplan.errors import EXIT_TIMEOUT, RunError, require_positive

_MODULE = "runner.parse_config"
_TIMEOUT_SECONDS = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class ParserResult:
    """What ``deepspeed.runtime.config.DeepSpeedConfig`` made of one file.

    Attributes:
        path: the file.
        accepted: whether DeepSpeed took it.
        error: DeepSpeed's message when it did not.
        resolved: batch sizes, stage and the like as DeepSpeed resolved them; empty when refused.
    """

    path: Path
    accepted: bool
    error: str | None
    resolved: dict[str, Any]


def check_with_deepspeed(path: Path | str, world_size: int) -> ParserResult | None:
    """DeepSpeed's opinion of ``path`` on ``world_size`` ranks; None when DeepSpeed is not installed."""
    results = check_all_with_deepspeed([path], world_size)
    return None if results is None else results[0]


def check_all_with_deepspeed(paths: Sequence[Path | str], world_size: int) -> list[ParserResult] | None:
    """The same for several files in one subprocess, since importing DeepSpeed takes seconds.

    Raises:
        RunError: the subprocess crashed or did not end.
        InputError: ``world_size`` is not a positive integer.
    """
    require_positive("world_size", world_size)
    runner = find_spec("runner")  # looks the package up without importing it
    if find_spec("deepspeed") is None or runner is None or not runner.submodule_search_locations:
        return None
    if not paths:
        return []
    root = str(Path(next(iter(runner.submodule_search_locations))).parent)
    search_path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH", ""))))
    command = [sys.executable, "-m", _MODULE, *(str(path) for path in paths), str(world_size)]
    try:
        done = subprocess.run(
            command,
            env={**os.environ, "PYTHONPATH": search_path},
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_SECONDS + len(paths),
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise RunError(f"DeepSpeed's parser did not answer in {error.timeout:.0f} s", EXIT_TIMEOUT) from error
    lines = done.stdout.splitlines()[-len(paths) :]
    if done.returncode != 0 or len(lines) != len(paths):
        reason = done.stderr.strip().splitlines()[-1:] or ["no output"]
        raise RunError(f"DeepSpeed's parser crashed (exit code {done.returncode}): {reason[0]}")
    return [_result(Path(path), json.loads(line)) for path, line in zip(paths, lines, strict=True)]


def _result(path: Path, record: dict[str, Any]) -> ParserResult:
    return ParserResult(path=path, accepted=record["accepted"], error=record["error"], resolved=record["resolved"])
