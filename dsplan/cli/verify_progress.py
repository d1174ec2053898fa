"""What a verification run is doing, on standard error: a bar on a terminal, a line for each stage elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import typer

Event = dict[str, Any]


@contextmanager
def run_progress(steps: int) -> Iterator[Callable[[Event], None]]:
    """A callback for the events of a run: ``{"event": "stage", "text"}`` and ``{"event": "step", "step", "loss"}``."""
    if not sys.stderr.isatty():
        yield _say
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (
        SpinnerColumn(),
        # Stages in brackets would be taken for markup.
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("starting", total=steps)

        def show(event: Event) -> None:
            if event.get("event") == "step":
                bar.update(task, completed=event["step"], description=_step(event))
            elif event.get("event") == "stage":
                bar.update(task, description=str(event["text"]))

        yield show


def _say(event: Event) -> None:
    if event.get("event") == "stage":
        typer.echo(f"dsplan: {event['text']}", err=True)
    elif event.get("event") == "step":
        typer.echo(f"dsplan: {_step(event)}", err=True)


def _step(event: Event) -> str:
    loss = event.get("loss")  # a dry run has none
    return f"step {event['step']} of {event['steps']}{'' if loss is None else f', loss {loss:.3f}'}"
