"""Why a run ended without its records, said so that the user can act: a RunError with the right exit code."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsplan.errors import (
    EXIT_BAD_INPUT,
    EXIT_NO_DEVICE,
    EXIT_OUT_OF_MEMORY,
    EXIT_RUN_FAILED,
    EXIT_TIMEOUT,
    RunError,
)

LOG_NAME = "launcher.log"
#: What a rank calls its failure; any other is EXIT_RUN_FAILED.
_EXIT_CODES = {"bad_input": EXIT_BAD_INPUT, "no_device": EXIT_NO_DEVICE, "out_of_memory": EXIT_OUT_OF_MEMORY}
_LOG_LINES = 15
_STACK_LINES = 60
_LOG_TAIL_BYTES = 1 << 16

# DeepSpeed's own running commentary, and what its launcher says about ending the other ranks.
_NOISE = re.compile(
    r"[\s^~]*$|\[\d{4}-\d\d-\d\d [^]]*\] \[(INFO|DEBUG)\]|.*Unable to find hostfile|.*exits with return code = "
    r"|Detected VISIBLE_DEVICES=|.*Setting ds_accelerator to|\[W\d+ .*"
)

# Any other signal can follow from the end of another rank: torch aborts a process whose peer has gone.
_NEVER_A_CONSEQUENCE = {signal.SIGKILL, signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE}
_HOST_MEMORY_HINT = (
    "dsplan did not send it: most likely the kernel, or the container's limit, ended it because host memory ran out."
    " Offload less to the CPU, use fewer ranks or a smaller model, or raise the limit; the kernel's log (dmesg) or the"
    " container's events name the victim"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What is left of a run that failed.

    Attributes:
        output_dir: where the ranks wrote and the log was kept.
        ranks: the ranks that were started.
        launcher_code: exit code of DeepSpeed's launcher; None when it still ran.
        exits: exit codes of the ranks that were seen to end by themselves, in that order; see ``ProcessTree``.
    """

    output_dir: Path
    ranks: Sequence[int]
    launcher_code: int | None
    exits: Mapping[int, int | None]

    def missing(self) -> list[int]:
        """The ranks without a record."""
        return [rank for rank in self.ranks if not (self.output_dir / f"rank-{rank}.json").exists()]

    def failing(self) -> bool:
        """Whether some rank has reported a failure, or has ended without a record."""
        missing = self.missing()
        return any(rank in self.exits or (self.output_dir / f"failure-{rank}.json").exists() for rank in missing)


def failure(evidence: Evidence) -> RunError:
    """The error for a run that broke off by itself.

    When one rank dies the others fail too, in a collective with it, so the first cause is looked for: a rank
    that ran out of memory, one that was killed or crashed in native code, then the first that reported an error.
    """
    failures = _failures(evidence)
    for rank, document in failures.items():
        if document.get("kind") == "out_of_memory":
            return _reported(evidence, f"rank {rank} ran out of memory in phase", document)
    if killed := _killed(evidence, failures, _NEVER_A_CONSEQUENCE):
        return killed
    for rank, document in failures.items():
        return _reported(evidence, f"rank {rank} failed in phase", document)
    # A SIGTERM is the launcher ending the other ranks.
    if killed := _killed(evidence, failures, set(range(1, 32)) - {signal.SIGTERM}):
        return killed
    for rank, code in evidence.exits.items():
        if code:
            text = f"rank {rank} ended with exit code {code} {whereabouts(evidence.output_dir, rank)}"
            return _error(evidence, text, EXIT_RUN_FAILED)
    ranks = ", ".join(map(str, evidence.missing()))
    text = f"DeepSpeed's launcher ended with exit code {evidence.launcher_code}, without a record from rank {ranks}"
    return _error(evidence, text, EXIT_RUN_FAILED)


def timeout(evidence: Evidence, timeout_s: float) -> RunError:
    """The error for a run that was ended because it took too long."""
    ranks = evidence.missing()
    text = f"no result within {timeout_s:g} s: rank {', '.join(map(str, ranks))} had not finished"
    if ranks:
        text += f"; rank {ranks[0]} was last seen {whereabouts(evidence.output_dir, ranks[0])}"
    if any("file_baton.py" in line for line in log_tail(evidence.output_dir / LOG_NAME, lines=200)):
        text += ". It waits for a DeepSpeed operator that another process compiles; when there is none, an earlier one"
        text += " was killed and left its lock: remove the files named lock below ~/.cache/torch_extensions"
        text += " (or TORCH_EXTENSIONS_DIR) and try again"
    else:
        text += ". Allow more time with --timeout"
    return _error(evidence, text, EXIT_TIMEOUT)


def whereabouts(output_dir: Path, rank: int) -> str:
    """Where a rank was when it last reported progress: ``while compiling ...``, ``after step 2 of 4``."""
    try:
        lines = (output_dir / f"progress-{rank}.jsonl").read_text(encoding="utf-8").splitlines()
        event = json.loads(lines[-1])
        if event["event"] == "step":
            return f"after step {event['step']} of {event['steps']}"
        return f"while {event['text']}"
    except (OSError, ValueError, IndexError, KeyError, TypeError):
        return "before it reported any progress"


def signal_of(exit_code: int | None) -> int | None:
    """The signal in an exit code: -9 from subprocess, 137 from a shell, 247 = -9 & 255 from DeepSpeed's launcher."""
    for number in () if exit_code is None else (-exit_code, exit_code - 128, 256 - exit_code):
        if signal.SIGHUP < number < 32:
            return number
    return None


def log_tail(log: Path, lines: int = _LOG_LINES) -> list[str]:
    """The last lines of the log that say something, DeepSpeed's commentary left out."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _LOG_TAIL_BYTES))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return []
    # A progress bar overwrites its line: only what stood there last is of interest.
    shown = [line.rsplit("\r", 1)[-1].rstrip() for line in text.replace("\r\n", "\n").split("\n")]
    shown = [line for line in shown if not _NOISE.match(line)][-max(lines, _STACK_LINES) :]
    stacks = [index for index, line in enumerate(shown) if line.startswith("Current thread ")]
    # faulthandler names the innermost call first.
    return shown[stacks[-1] :][:lines] if stacks else shown[-lines:]


def _killed(evidence: Evidence, failures: Collection[int], signals: Collection[int]) -> RunError | None:
    """The error for a rank that one of ``signals`` ended before it could say anything; None where there is none."""
    silent = {rank: evidence.exits.get(rank) for rank in evidence.missing() if rank not in failures}
    seen: list[tuple[int | None, int | None]] = [
        (rank, signal_of(code)) for rank, code in evidence.exits.items() if rank in silent
    ]
    # DeepSpeed's launcher passes on how a rank ended, but not which.
    unknown = [rank for rank, code in silent.items() if code is None]
    seen.append((unknown[0] if len(unknown) == 1 else None, signal_of(evidence.launcher_code)))
    found = [(rank, number) for rank, number in seen if number is not None and number in signals]
    if not found:
        return None
    rank, number = found[0]
    text = f"{'a process of the run' if rank is None else f'rank {rank}'} was ended by {signal.Signals(number).name}"
    if rank is not None:
        text += f" {whereabouts(evidence.output_dir, rank)}"
    if number != signal.SIGKILL:
        return _error(evidence, text, EXIT_RUN_FAILED)
    return _error(evidence, f"{text}. {_HOST_MEMORY_HINT}", EXIT_OUT_OF_MEMORY)


def _failures(evidence: Evidence) -> dict[int, dict[str, Any]]:
    """What the ranks reported of their own failures, the earliest first."""
    found: list[tuple[float, int, dict[str, Any]]] = []
    for rank in evidence.ranks:
        path = evidence.output_dir / f"failure-{rank}.json"
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            # The launcher ended this rank, because another one had failed.
            if not str(document["message"]).startswith(("SystemExit", "KeyboardInterrupt")):
                found.append((path.stat().st_mtime, rank, document))
        except FileNotFoundError:
            continue
        except (ValueError, TypeError, KeyError):
            found.append((path.stat().st_mtime, rank, {"phase": "unknown", "message": "its failure file is broken"}))
    return {rank: document for _, rank, document in sorted(found, key=lambda item: item[:2])}


def _reported(evidence: Evidence, what: str, document: Mapping[str, Any]) -> RunError:
    """The error for a failure that a rank reported; where it is explained, the log would only say it again."""
    if document.get("kind") == "bad_input":  # no rank's affair: every one of them would refuse it
        return RunError(str(document.get("message")), EXIT_BAD_INPUT)
    step = "" if document.get("step") is None else f" of step {document['step']}"
    text = f"{what} {document.get('phase')}{step}: {document.get('message')}"
    exit_code = _EXIT_CODES.get(str(document.get("kind")), EXIT_RUN_FAILED)
    return _error(evidence, text, exit_code, with_log=not document.get("explained"))


def _error(evidence: Evidence, text: str, exit_code: int, *, with_log: bool = True) -> RunError:
    log = evidence.output_dir / LOG_NAME
    tail = [f"  | {line}" for line in log_tail(log)] if with_log else []
    said = ["Last lines of the log:", *tail] if tail else []
    return RunError("\n".join([text.rstrip(), *said, f"The whole log: {log}"]), exit_code)
