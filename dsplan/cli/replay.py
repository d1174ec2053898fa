"""``dsplan replay``: what others published, against the planner."""

from __future__ import annotations

from typing import Annotated

import typer

from dsplan.cli.options import JsonOption
from dsplan.cli.progress import progress
from dsplan.errors import EXIT_OK, EXIT_PREDICTION_MISSED


def replay(
    *,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Also dry-run Gaudi's tables (a minute; needs the run extra)."),
    ] = False,
    as_json: JsonOption = False,
) -> int:
    """Hold published memory figures against the planner, row by row.

    Examples:
    dsplan replay
    dsplan replay --json

    Exit codes:
    0 every verdict is as it should be;
    1 one is not.
    """
    from dsplan.replay.result import replay as replay_cases
    from dsplan.report.console import print_document, stdout_console
    from dsplan.report.replay import print_replay, replay_document

    with progress("Replaying") as advance:
        result = replay_cases(dry=dry_run, on_progress=advance)
    if as_json:
        print_document(replay_document(result))
    else:
        print_replay(stdout_console(), result)
    return EXIT_OK if result.holds else EXIT_PREDICTION_MISSED
