"""Measure this machine: ``python -m runner.calibrate OUTPUT.json [--gpus N] [--name NAME] [--nvme-path DIR]``.

First one rank alone measures a device, its links to the host and the engine, then all ranks the collectives between
them. Writes a profile (``schemas/profile.schema.json``), which grows with every part: ``dsplan recommend --profile``
computes step times with it. Everything is started at once, also what compiles DeepSpeed's operators where no earlier
run has; the time counts from there.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

from dsplan import __version__
from dsplan.errors import EXIT_OK, DsplanError, RunError
from dsplan.files import require_target, write_text
from dsplan.records import require_valid
from runner.calibrate_compile import NAMES
from runner.calibrate_ranks import Ranks, end, environment, start
from runner.orphan import exit_with_parent

SCHEMA_VERSION = 1
#: What all of it takes, starting included; more where operators compile for longer than the kernels take to measure.
SECONDS = 100.0
#: Of it for the rank that measures alone, where others follow.
_ALONE = 0.7
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
        seconds: what all of it may take from now on, as far as nothing is left out that a prediction needs.
        nvme_path: folder on the drive to measure; None measures none.
        on_progress: called with a line of text per part.
        on_partial: called with the profile as far as it is, after every part: a break loses nothing of it.

    Raises:
        RunError: a rank failed or did not end; its last lines are in the message. What else could be measured was
            given to ``on_partial``.
    """
    begun = time.monotonic()
    deadline = begun + 8 * seconds + _COMPILING_S
    failures: list[RunError] = []
    with tempfile.TemporaryDirectory(prefix="dsplan-calibrate-") as name_of_folder, ExitStack() as running:
        folder = Path(name_of_folder)
        on_progress("starting, and loading torch and DeepSpeed")
        shares = {1: _ALONE, gpus: 1.0} if gpus > 1 else {1: 1.0}
        parts: dict[int, Ranks] = {}
        for ranks, share in shares.items():
            parts[ranks] = _started(device, ranks, begun, share * seconds, folder, nvme_path)
            running.callback(parts[ranks].end)
        running.callback(end, _compilers(device, folder))
        while not all(part.waiting for part in parts.values()) and time.monotonic() < deadline:
            time.sleep(0.05)

        def measured(ranks: int, before: dict[str, Any]) -> dict[str, Any]:
            found = before

            def changed(document: dict[str, Any]) -> None:
                nonlocal found
                found = _joined(before, document)
                on_partial(_profile(found, name, gpus))

            on_progress(f"measuring with {ranks} rank{'s' if ranks > 1 else ''}")
            try:
                changed(parts[ranks].follow(on_progress, changed, deadline=deadline))
            except RunError as error:
                failures.append(error)
            return found

        document = measured(1, {})
        if gpus > 1 and document:  # also after a failure: what one part lacks takes nothing from the other
            document = measured(gpus, document)
    if failures:
        raise failures[0]
    return _profile(document, name, gpus)


def _started(device: str, ranks: int, begun: float, seconds: float, folder: Path, nvme_path: Path | None) -> Ranks:
    command = partial(_command, device, begun, seconds, nvme_path if ranks == 1 else None)
    return Ranks(command, device=device, ranks=ranks, folder=folder)


def _compilers(device: str, folder: Path) -> list[Any]:
    """Processes that compile what no earlier run has, beside all that waits for nothing of it."""
    env = environment(device, 1)
    with (folder / "compilers.log").open("wb") as sink:
        return [start(_child("runner.calibrate_compile", name), env, folder, sink) for name in NAMES]


def _joined(before: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """What one rank measured, and what several measured after it."""
    if not before:
        return more
    engine = [*before.get("engine", []), *more.get("engine", [])]
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


def _command(device: str, begun: float, seconds: float, nvme_path: Path | None, output: Path, turn: Path) -> list[str]:
    arguments = [device, str(begun), str(seconds), str(output), str(turn)]
    return _child("runner.calibrate_rank", *arguments, *([] if nvme_path is None else [str(nvme_path.absolute())]))


def _child(module: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "runner.child", module, *arguments]


def _save(path: Path, profile: dict[str, Any]) -> None:
    write_text(path, json.dumps(profile, separators=(",", ":")) + "\n", force=True)  # asked for at the start


def main(arguments: list[str] | None = None) -> int:
    """The command line of this module; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m runner.calibrate")
    parser.add_argument("output", type=Path)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--gpus", type=int, default=1)
    parser.add_argument("--name")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="from the start of this command")
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
