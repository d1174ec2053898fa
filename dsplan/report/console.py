"""Where reports go: standard output."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console


def stdout_console() -> Console:
    """rich's console: colours on a terminal (not with NO_COLOR), plain text in a pipe, 80 columns there."""
    from rich.console import Console

    # Highlighting would colour every number alike, which says nothing.
    return Console(highlight=False, emoji=False, markup=False)


def print_document(document: Mapping[str, Any]) -> None:
    """``document`` as JSON."""
    typer.echo(json.dumps(document, indent=2, ensure_ascii=False))
