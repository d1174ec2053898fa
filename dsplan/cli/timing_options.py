"""The profile that step times are computed with, from ``--profile``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from dsplan.timing.profile import Profile

ProfileOption = Annotated[
    str | None,
    typer.Option(
        "--profile",
        metavar="NAME|FILE",
        help="Measured rates of the machine, as dsplan verify --calibrate stores them; nominal: data sheets (default: "
        "the measured ones that ship for the device, else nominal).",
        show_default=False,
    ),
]


def read_profile_option(value: str | None) -> Profile | None:
    """The profile that was asked for; None for none.

    Raises:
        InputError: no such name or file, or it is no profile.
    """
    if value is None:
        return None
    from dsplan.timing.profiles import find_profile

    return find_profile(value)
