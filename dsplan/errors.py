"""Errors a user can act on, and the exit code each one ends with.

Every message says what was wrong, where, and what to do; the command line prints it as one line.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

EXIT_OK = 0
EXIT_PREDICTION_MISSED = 1  # verify: the prediction is outside the tolerance
EXIT_FINDINGS = 1  # check: a configuration has mistakes
EXIT_BAD_INPUT = 2  # a value, a file or a combination that cannot be planned
EXIT_NO_DEVICE = 3  # an accelerator was asked for and this machine has none
EXIT_OUT_OF_MEMORY = 4  # a run died of memory
EXIT_RUN_FAILED = 5  # a run crashed, or broke off without a record
EXIT_TIMEOUT = 6  # a run did not end within --timeout
EXIT_MISSING_EXTRA = 7  # torch and deepspeed are not installed
EXIT_INTERRUPTED = 130
EXIT_CLOSED_PIPE = 141  # who read the output has closed it, as `| head` does: 128 and SIGPIPE


class DsplanError(Exception):
    """An error that the user can correct; the command line shows the message without a traceback."""

    exit_code = EXIT_BAD_INPUT


class InputError(DsplanError):
    """A value, a file or a combination of them that cannot be planned (exit code 2)."""


class NoDeviceError(DsplanError):
    """The accelerator that was asked for is not on this machine (exit code 3)."""

    exit_code = EXIT_NO_DEVICE


class RunError(DsplanError):
    """A verification run that ended without a record; the exit code says how it ended."""

    def __init__(self, message: str, exit_code: int = EXIT_RUN_FAILED) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class MissingExtraError(DsplanError):
    """A command needs torch and deepspeed, which planning does not install (exit code 7)."""

    exit_code = EXIT_MISSING_EXTRA


def nearest(value: str, allowed: Iterable[str], *, limit: int = 3) -> list[str]:
    """The allowed names closest to ``value``, best first; empty when none is similar."""
    names = {name.casefold(): name for name in allowed}
    found = difflib.get_close_matches(value.casefold(), names, n=limit, cutoff=0.5)
    return [names[key] for key in found]


def choice(field: str, value: str, allowed: Iterable[str]) -> str:
    """Return ``value`` as it is spelled in ``allowed`` (case does not matter), or raise InputError."""
    options = list(allowed)
    for option in options:
        if option.casefold() == value.casefold():
            return option
    near = nearest(value, options)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise InputError(f"{field}: unknown value {value!r}; {hint}allowed: {', '.join(options)}")


def require_positive(field: str, value: int) -> None:
    """Raise InputError unless ``value`` is an integer of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{field}: {value!r} is not allowed; it must be an integer of at least 1")
