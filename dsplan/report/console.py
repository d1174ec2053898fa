"""Where reports go: standard output."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

#: Columns that no table has.
_UNLIMITED = 10_000
#: Columns of a terminal that does not say how many it has, and the fewest that text is wrapped to.
_USUAL, _FEWEST = 80, 40


def stdout_console() -> Console:
    """rich's console: colours on a terminal (not with NO_COLOR), plain text in a pipe, 80 columns there."""
    from rich.console import Console

    # Highlighting would colour every number alike, which says nothing.
    console = Console(highlight=False, emoji=False, markup=False)
    # COLUMNS=0 is "not known", and would leave no room for a letter.
    console.width = max(console.width or _USUAL, _FEWEST)
    return console


def is_wider(console: Console, table: Table) -> bool:
    """Whether the terminal is too narrow for ``table`` with every row on one line."""
    from rich.measure import Measurement

    return Measurement.get(console, console.options.update(max_width=_UNLIMITED), table).maximum > console.width


def print_table(console: Console, table: Table) -> None:
    """``table``, wider than the terminal where its numbers would be cut otherwise: a long line can be scrolled."""
    width = console.width
    try:
        console.width = max(width, _least_width(console, table))
        console.print(table)
    finally:
        console.width = width


def _least_width(console: Console, table: Table) -> int:
    """Columns of a terminal that ``table`` (without a box) takes when only those of its columns wrap that may."""
    from rich.measure import Measurement

    options = console.options.update(max_width=_UNLIMITED)
    _, right, _, left = table.padding
    total = 0
    for column in table.columns:
        cells = [Measurement.get(console, options, cell) for cell in (column.header, *column.cells)]
        total += max((cell.maximum if column.no_wrap else cell.minimum for cell in cells), default=0) + left + right
    return total if table.pad_edge else total - left - right


def print_document(document: Mapping[str, Any]) -> None:
    """``document`` as JSON."""
    typer.echo(json.dumps(document, indent=2, ensure_ascii=False))
