"""The command line: parse, call, print. No arithmetic.

Importing this package is part of the time that ``dsplan estimate`` takes, so only the command that is called
is imported and given to typer, and every command imports what only it needs when it runs.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from io import TextIOWrapper
from typing import Annotated, Any, cast

import typer

from dsplan import __version__
from dsplan.errors import (
    EXIT_BAD_INPUT,
    EXIT_CLOSED_PIPE,
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_RUN_FAILED,
    DsplanError,
    RunError,
)

#: Some releases of typer bring click along and some depend on it; both export this one of its usage
#: errors, whose base all the others share.
_UsageError = cast(type[Exception], typer.BadParameter.__base__)

_INTERRUPTED = "interrupted; nothing is left running"

#: In the order of ``dsplan --help``. The module of a command and its function bear its name.
COMMANDS = ("estimate", "recommend", "fit", "sweep", "emit-config", "check", "verify", "replay")

#: What the minGPT benchmark scripts call an option; their underscores are hyphens here.
SPELLINGS = {"batch-size": "micro-batch-size"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command in ``arguments`` (``sys.argv`` by default) and return its exit code.

    An error that the user can correct is one line on standard error, never a traceback; exit codes are
    those of :mod:`dsplan.errors`, 2 for a usage error.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            # Formulas have Greek letters; a terminal that cannot show one gets "?".
            stream.reconfigure(errors="replace")
    given = list(sys.argv[1:] if arguments is None else arguments)
    called = [name for name in given[:1] if name in COMMANDS]
    try:
        result = _command(called or COMMANDS).main(args=given, prog_name="dsplan", standalone_mode=False)
    except (DsplanError, _UsageError, OSError, KeyboardInterrupt, typer.Abort) as error:
        return _fail(*_failure(error, ["dsplan", *called]))
    except SystemExit as exiting:
        # Who reads the output has enough (`| head`): typer says 1 then, which means something else here.
        if isinstance(exiting.__context__, BrokenPipeError):
            return EXIT_CLOSED_PIPE
        raise
    if result == EXIT_INTERRUPTED:  # some releases of typer turn a KeyboardInterrupt into this
        return _fail(_INTERRUPTED, EXIT_INTERRUPTED)
    return result if isinstance(result, int) else EXIT_OK


def _failure(error: BaseException, command: Sequence[str]) -> tuple[str, int]:
    """What ``error`` says to the user of ``command``, and its exit code."""
    if isinstance(error, RunError):
        return str(error), error.exit_code  # with the last lines of the run's log
    if isinstance(error, DsplanError):
        return _one_line(str(error)), error.exit_code
    if isinstance(error, _UsageError):
        return f"{_one_line(_message(error))}; see {' '.join(command)} --help", EXIT_BAD_INPUT
    if isinstance(error, OSError):  # every file that is read or written has its own message: this is what was printed
        return f"the output cannot be written: {error.strerror or error}", EXIT_RUN_FAILED
    return _INTERRUPTED, EXIT_INTERRUPTED


def _command(names: Sequence[str]) -> Any:
    """The command line with the commands of these names, as typer builds it (a command of click's)."""
    from dsplan.cli.signature import spread_options

    # Only `dsplan --help` shows the two options that set up a shell, and only they take time to prepare.
    app = typer.Typer(name="dsplan", add_completion=len(names) > 1, pretty_exceptions_enable=False)
    # Commands inherit both from the program's context.
    settings = {"token_normalize_func": _spelled, "help_option_names": ["--help", "-h"]}
    app.callback(invoke_without_command=True, context_settings=settings)(_dsplan)
    for name in names:
        function = name.replace("-", "_")
        module = importlib.import_module(f"dsplan.cli.{function}")
        app.command(name)(spread_options(getattr(module, function)))
    return typer.main.get_command(app)


def _spelled(name: str) -> str:
    """An option's name as it is declared: the minGPT benchmark scripts' --n_layer is --n-layer."""
    dashed = name.replace("_", "-")
    return SPELLINGS.get(dashed, dashed)


def _dsplan(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False,
) -> None:
    """Plan which DeepSpeed configuration trains a model on your machines, to the byte, and prove it."""
    if version:
        typer.echo(f"dsplan {__version__}")
        raise typer.Exit(EXIT_OK)
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(EXIT_BAD_INPUT)


def _message(error: Exception) -> str:
    written = getattr(error, "format_message", None)
    return str(written() if written is not None else error).rstrip(".")


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _fail(message: str, exit_code: int) -> int:
    typer.echo(f"dsplan: error: {message}", err=True)
    return exit_code
