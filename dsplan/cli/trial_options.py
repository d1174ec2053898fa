"""The options of ``dsplan verify`` that measure speed: of this machine, or of the best candidates on it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

_SPEED = "Speed: measured on the devices of this machine"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialOptions:
    """What is measured of speed."""

    calibrate: Annotated[
        bool,
        typer.Option(
            "--calibrate",
            help="Measure this machine and keep its profile, by which --profile NAME computes step times.",
            rich_help_panel=_SPEED,
        ),
    ] = False
    name: Annotated[
        str | None,
        typer.Option(
            "--name",
            metavar="NAME",
            help="Of the profile that --calibrate keeps (default: the device's).",
            rich_help_panel=_SPEED,
        ),
    ] = None
    nvme_path: Annotated[
        Path | None,
        typer.Option(
            "--nvme-path",
            metavar="DIR",
            help="With --calibrate, also measure the drive that this folder lies on.",
            rich_help_panel=_SPEED,
        ),
    ] = None
    top: Annotated[
        int | None,
        typer.Option(
            "--top",
            metavar="K",
            help="Time the K best configurations of the search and stages 0 to 3 as a baseline, beside what was "
            "predicted.",
            rich_help_panel=_SPEED,
        ),
    ] = None
    profile: Annotated[
        str | None,
        typer.Option(
            "--profile",
            metavar="NAME|FILE",
            help="With --top, the measured rates to predict with (default: those that ship for the device).",
            rich_help_panel=_SPEED,
        ),
    ] = None
