"""The profile that step times are computed with, from ``--profile``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from dsplan.timing.profile import Profile

ProfileOption = Annotated[
    Path | None,
    typer.Option(
        "--profile",
        metavar="FILE",
        help="Measured rates of the machine, as runner.calibrate writes them (default: data sheets, nominal).",
        show_default=False,
    ),
]


def read_profile_option(value: Path | None) -> Profile | None:
    """The profile that was asked for; None for none.

    Raises:
        InputError: no such file, or it is no profile.
    """
    if value is None:
        return None
    from dsplan.timing.profile import read_profile

    return read_profile(value)
