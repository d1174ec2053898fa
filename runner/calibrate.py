"""Measure this machine: ``python -m runner.calibrate OUTPUT.json [--gpus N] [--name NAME] [--nvme-path DIR]``.

First one rank alone measures a device, its links to the host and the engine, then all ranks the collectives between
them. Writes a profile (``schemas/profile.schema.json``), which grows with every part: ``dsplan recommend --profile``
computes step times with it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from dsplan import __version__
from dsplan.errors import EXIT_OK, EXIT_RUN_FAILED, EXIT_TIMEOUT, DsplanError, RunError
from dsplan.files import require_target, write_text
from dsplan.records import require_valid
from runner.environment import child_environment
from runner.launch import free_port
from runner.orphan import PARENT_PID, exit_with_parent
from runner.processes import GRACE_S
from runner.spec import RunSpec

SCHEMA_VERSION = 1
#: What rank 0 writes of a part that is done, and of an operator that has to be compiled.
_TOLD = re.compile(r" rows, |^(compiling|waiting for another process)")
SECONDS = 70.0
_TABLES = (
    *("linear", "products", "fused_attention", "elementwise", "optimizer", "launch", "host_link", "host"),
    *("collectives", "engine", "drive"),
)
#: Once only: DeepSpeed's operators have to be compiled.
_COMPILING_S = 300.0


def calibrate(
    *,
    device: str,
    gpus: int,
    name: str | None = None,
    seconds: float = SECONDS,
    nvme_path: Path | None = None,
    on_progress: Callable[[str], None] = lambda _: None,
    on_partial: Callable[[dict[str, Any]], None] = lambda _: None,
) -> dict[str, Any]:
    """A profile of ``gpus`` devices of this machine, valid under its schema.

    Args:
        device: ``cuda`` or ``cpu``.
        gpus: ranks of the second part; 1 leaves it out.
        name: what the profile is called; the device's name by default.
        seconds: what the first part may take, compilation apart; the second takes about half of it.
        nvme_path: folder on the drive to measure; None measures none.
        on_progress: called with a line of text per part.
        on_partial: called with the profile as far as it is, after every part: a break loses nothing of it.

    Raises:
        RunError: a rank failed or did not end; its last lines are in the message. What else could be measured was
            given to ``on_partial``.
    """
    failures: list[RunError] = []
    with tempfile.TemporaryDirectory(prefix="dsplan-calibrate-") as folder:

        def part(ranks: int, before: dict[str, Any]) -> dict[str, Any]:
            found = before

            def changed(document: dict[str, Any]) -> None:
                nonlocal found
                found = _joined(before, document)
                on_partial(_profile(found, name, gpus))

            drive = nvme_path if ranks == 1 else None
            try:
                changed(_part(device, ranks, seconds, Path(folder), drive, on_progress, changed))
            except RunError as error:
                failures.append(error)
            return found

        document = part(1, {})
        if gpus > 1 and document:  # also after a failure: what one part lacks takes nothing from the other
            document = part(gpus, document)
    if failures:
        raise failures[0]
    return _profile(document, name, gpus)


def _joined(before: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """What one rank measured, and what several measured after it."""
    if not before:
        return more
    engine = [*before["engine"], *more.get("engine", [])]
    return {**before, "collectives": more.get("collectives", []), "engine": engine}


def _profile(document: dict[str, Any], name: str | None, gpus: int) -> dict[str, Any]:
    """The profile of what was measured; tables that are not there yet are empty."""
    profile = {
        "schema_version": SCHEMA_VERSION,
        "dsplan_version": __version__,
        "name": name or re.sub(r"[^a-z0-9]+", "-", document["device"]["name"].casefold()).strip("-"),
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "gpus": gpus,
        **{table: [] for table in _TABLES},
        **document,
    }
    require_valid("profile", profile, "the calibration")
    return profile


def _part(
    device: str,
    ranks: int,
    seconds: float,
    folder: Path,
    nvme_path: Path | None,
    say: Callable[[str], None],
    changed: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:
    spec = RunSpec(model={}, ds_config={}, sequence_length=1, device=device, gpus=ranks)
    output, log = folder / f"ranks-{ranks}.json", folder / f"ranks-{ranks}.log"
    env = {**child_environment(spec, os.environ), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    env |= {PARENT_PID: str(os.getpid()), "WORLD_SIZE": str(ranks), "LOCAL_SIZE": str(ranks)}
    say(f"measuring with {ranks} rank{'s' if ranks > 1 else ''}")
    command = _command(device, seconds, output, nvme_path)
    with log.open("wb") as sink:
        children = [
            subprocess.Popen(
                command,
                env={**env, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            for rank in range(ranks)
        ]
        try:
            deadline = time.monotonic() + 4 * seconds + _COMPILING_S
            for line in _lines(children, log, deadline):
                say(line)
                if output.exists():
                    changed(json.loads(output.read_text(encoding="utf-8")))
        finally:
            _end(children)
    document: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))
    return document


def _end(children: list[subprocess.Popen[bytes]]) -> None:
    """End those that still run: told first, since one that compiles removes torch's lock then (``runner.child``)."""
    for child in children:
        child.terminate()
    patience = time.monotonic() + GRACE_S
    for child in children:
        with suppress(subprocess.TimeoutExpired):
            child.wait(max(0.0, patience - time.monotonic()))
        if child.poll() is None:
            child.kill()
        child.wait()


def _command(device: str, seconds: float, output: Path, nvme_path: Path | None) -> list[str]:
    command = [sys.executable, "-m", "runner.child", "runner.calibrate_rank", device, str(seconds), str(output)]
    return command if nvme_path is None else [*command, str(nvme_path.absolute())]


def _lines(children: list[subprocess.Popen[bytes]], log: Path, deadline: float) -> Iterator[str]:
    """What rank 0 says of each part, as it comes, until all ranks have ended; RunError when one fails."""
    told = 0
    while True:
        ended = all(child.poll() is not None for child in children)
        broken = any(child.returncode for child in children)
        lines = [line for line in log.read_text(errors="replace").splitlines() if _TOLD.search(line)]
        yield from lines[told:]
        told = len(lines)
        if broken:
            raise RunError(f"calibration: a rank failed; its last lines:\n{_tail(log)}", EXIT_RUN_FAILED)
        if ended:
            return
        if time.monotonic() > deadline:
            raise RunError(f"calibration: did not end in time; its last lines:\n{_tail(log)}", EXIT_TIMEOUT)
        time.sleep(0.2)


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-2000:]


def _save(path: Path, profile: dict[str, Any]) -> None:
    write_text(path, json.dumps(profile, separators=(",", ":")) + "\n", force=True)  # asked for at the start


def main(arguments: list[str] | None = None) -> int:
    """The command line of this module; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m runner.calibrate")
    parser.add_argument("output", type=Path)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--gpus", type=int, default=1)
    parser.add_argument("--name")
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--nvme-path", type=Path)
    parser.add_argument("--force", action="store_true")
    options = parser.parse_args(arguments)
    exit_with_parent()
    try:
        require_target(options.output, force=options.force)
        profile = calibrate(
            device=options.device,
            gpus=options.gpus,
            name=options.name,
            seconds=options.seconds,
            nvme_path=options.nvme_path,
            on_progress=lambda text: print(text, file=sys.stderr, flush=True),  # noqa: T201
            on_partial=lambda profile: _save(options.output, profile),
        )
        _save(options.output, profile)
    except DsplanError as error:
        print(f"calibrate: {error}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    return EXIT_OK


if __name__ == "__main__":
    raise SystemExit(main())
