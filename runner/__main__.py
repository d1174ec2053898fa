"""The parent of a verification run: ``python -m runner SPEC OUTPUT_DIR [--timeout SECONDS]``.

Says what happens as JSON lines on stdout: the progress of rank 0, then either
``{"event": "done", "records": [PATH, ...]}`` or ``{"event": "failed", "exit_code": N, "message": TEXT}``;
ends with that exit code. SIGINT and SIGTERM end the whole run; the exit code is then 130.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

from dsplan.errors import EXIT_BAD_INPUT, EXIT_INTERRUPTED, EXIT_OK, EXIT_RUN_FAILED, DsplanError
from dsplan.signals import interrupt
from runner.launch import record_paths, run
from runner.orphan import exit_with_parent
from runner.spec import RunSpec

DEFAULT_TIMEOUT_S = 900.0


def main(arguments: list[str] | None = None) -> int:
    """Run the specification and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m runner", description="Run one verification run.")
    parser.add_argument("spec", type=Path, help="the RunSpec, as JSON")
    parser.add_argument("output_dir", type=Path, help="where the log and the records are kept")
    parser.add_argument("--timeout", type=float, default=DEFAULT_TIMEOUT_S, metavar="SECONDS")
    options = parser.parse_args(arguments)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # SIGINT too: a background job starts with it ignored
        signal.signal(number, interrupt)
    exit_with_parent()
    try:
        return _run(options.spec, options.output_dir.absolute(), options.timeout)
    except BrokenPipeError:  # the reader has gone: nobody wants the run any more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_INTERRUPTED


def _run(spec_path: Path, output_dir: Path, timeout_s: float) -> int:
    try:
        try:
            spec = RunSpec.read(spec_path)
        except (OSError, ValueError, TypeError) as error:
            return _failed(EXIT_BAD_INPUT, f"{spec_path}: not a run specification: {error}")
        run(spec, output_dir, timeout_s=timeout_s, on_progress=_say)
        _say({"event": "done", "records": [str(path) for path in record_paths(output_dir, spec.ranks)]})
    except KeyboardInterrupt:
        return _failed(EXIT_INTERRUPTED, "interrupted")
    except DsplanError as error:
        return _failed(error.exit_code, str(error))
    except BrokenPipeError:
        raise
    except Exception as error:
        traceback.print_exc()
        return _failed(EXIT_RUN_FAILED, f"the runner itself failed: {type(error).__name__}: {error}")
    return EXIT_OK


def _failed(exit_code: int, message: str) -> int:
    _say({"event": "failed", "exit_code": exit_code, "message": message})
    return exit_code


def _say(event: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    raise SystemExit(main())
