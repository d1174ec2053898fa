"""Timed runs one after the other: ``python -m runner.trials TRIALS.json OUTPUT_DIR [--timeout SECONDS]``.

TRIALS.json is a list of run specifications. Says what happens as JSON lines on stdout: the progress of rank 0 of each,
with the ``trial``'s number; then ``{"event": "measured", "trial": N, "records": [...]}`` or ``{"event": "failed",
"trial": N, "exit_code": N, "message": TEXT}``. One that fails does not keep the next from running.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any

from dsplan.errors import EXIT_BAD_INPUT, EXIT_INTERRUPTED, EXIT_OK, RunError
from dsplan.signals import interrupt
from runner.launch import run
from runner.orphan import exit_with_parent
from runner.spec import SPEC_VERSION, RunSpec


def main(arguments: list[str] | None = None) -> int:
    """Run all and return the exit code: 0 also where runs failed, which the lines say."""
    parser = argparse.ArgumentParser(prog="python -m runner.trials")
    parser.add_argument("trials", type=Path)
    parser.add_argument("output_dir", type=Path)
    parser.add_argument("--timeout", type=float, default=600.0, metavar="SECONDS", help="of each run")
    options = parser.parse_args(arguments)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
    exit_with_parent()
    try:
        for index, document in enumerate(json.loads(options.trials.read_text(encoding="utf-8"))):
            _trial(index, document, options.output_dir / f"trial-{index}", options.timeout)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except (KeyError, TypeError, ValueError) as error:
        print(f"trials: {options.trials}: not run specifications: {error}", file=sys.stderr)  # noqa: T201
        return EXIT_BAD_INPUT
    return EXIT_OK


def _trial(index: int, document: dict[str, Any], folder: Path, timeout_s: float) -> None:
    if document.pop("version", None) != SPEC_VERSION:
        raise ValueError(f"version of trial {index}; this runner reads {SPEC_VERSION}")
    say = partial(_say, index)
    try:
        records = run(RunSpec(**document), folder, timeout_s=timeout_s, on_progress=say, module="runner.timed_run")
    except RunError as error:
        say({"event": "failed", "exit_code": error.exit_code, "message": str(error)})
    else:
        say({"event": "measured", "records": records})


def _say(index: int, event: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps({**event, "trial": index}) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    raise SystemExit(main())
