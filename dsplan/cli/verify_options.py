"""The options that only ``dsplan verify`` has: what is run, and where; and what only a dry run can do."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import typer

DEFAULT_STRATEGY = "zero2"
DEFAULT_STEPS = 4
DEFAULT_DATA = "synthetic"
WORST = "worst"
_RUN = "Run"
_DRY = "Dry run: each of these asks for one"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """What is run, and where."""

    ds_config: Annotated[
        Path | None,
        typer.Option(
            "--ds-config", metavar="FILE", help="Verify exactly this DeepSpeed configuration.", rich_help_panel=_RUN
        ),
    ] = None
    strategy: Annotated[
        str | None,
        typer.Option(
            "--strategy",
            "--plan",
            metavar="NAME",
            help=f"zero0, zero1, zero2, zero3, zero3-offload, ... (default {DEFAULT_STRATEGY}); ddp: torch's "
            "DistributedDataParallel, to compare with.",
            rich_help_panel=_RUN,
        ),
    ] = None
    device: Annotated[
        str,
        typer.Option(
            "--device",
            metavar="KIND",
            help="auto, cuda, hpu, cpu or fake: a dry run, the real engine without a device. auto: cuda, else hpu, "
            "else the dry run.",
            rich_help_panel=_RUN,
            show_default=True,
        ),
    ] = "auto"
    gpus: Annotated[
        int | None,
        typer.Option(
            "--gpus",
            metavar="N",
            help="Ranks, all on this machine (default: one per device; 2 on the CPU); in a dry run any number "
            "(default 1).",
            rich_help_panel=_RUN,
        ),
    ] = None
    share_devices: Annotated[
        int | None,
        typer.Option(
            "--share-devices",
            metavar="D",
            help="Run the ranks on D devices, several on each: what each rank allocates is measured, not its time.",
            rich_help_panel=_RUN,
        ),
    ] = None
    steps: Annotated[
        int | None,
        typer.Option("--steps", metavar="N", help=f"Optimizer steps (default {DEFAULT_STEPS}).", rich_help_panel=_RUN),
    ] = None
    cap: Annotated[
        str | None,
        typer.Option(
            "--cap",
            metavar="SIZE",
            help="Let torch's allocator take at most this much of the device (40GiB), to stand for a smaller card.",
            rich_help_panel=_RUN,
        ),
    ] = None
    late_release: Annotated[
        bool,
        typer.Option(
            "--late-release",
            help="Let collectives give back what they hold at their wait, never before: the most that the run can "
            "take, whatever the timing, measured (slower: the host waits too).",
            rich_help_panel=_RUN,
        ),
    ] = False
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="KIND",
            help=f"synthetic tokens, or the small text that ships with mingpt (default {DEFAULT_DATA}).",
            rich_help_panel=_RUN,
        ),
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DryRunOptions:
    """What only a dry run can do."""

    gpu: Annotated[
        str | None,
        typer.Option(
            "--gpu",
            metavar="NAME",
            help="Stand for this device: h200, a100-40gb, gaudi2, ..., or cpu (default: this machine's, else "
            "a100-80gb).",
            rich_help_panel=_DRY,
        ),
    ] = None
    rank: Annotated[
        str | None,
        typer.Option(
            "--rank",
            metavar="N|worst",
            help="Dry-run this rank (default worst, by the formulas).",
            rich_help_panel=_DRY,
        ),
    ] = None
    against: Annotated[
        Path | None,
        typer.Option(
            "--against",
            metavar="RECORD",
            help="Dry-run what this record of a run says was run, and hold the dry run against it.",
            rich_help_panel=_DRY,
        ),
    ] = None
    alloc_conf: Annotated[
        str | None,
        typer.Option(
            "--alloc-conf",
            metavar="TEXT",
            help="Replay torch's allocator with these settings (default: PYTORCH_CUDA_ALLOC_CONF or "
            "PYTORCH_ALLOC_CONF of the environment).",
            rich_help_panel=_DRY,
        ),
    ] = None
    early_release: Annotated[
        bool,
        typer.Option(
            "--early-release",
            help="Give back what a collective holds at the next one, as when torch's watchdog has seen it done: the "
            "least that a run takes. Otherwise at its wait: the most.",
            rich_help_panel=_DRY,
        ),
    ] = False
    events: Annotated[
        list[Path] | None,
        typer.Option(
            "--events",
            metavar="FILE",
            help="Write every allocation: as lines (.jsonl, .jsonl.gz), as a snapshot for pytorch.org/memory_viz "
            "(.pickle) or as a picture (.svg). May be given several times.",
            rich_help_panel=_DRY,
        ),
    ] = None
    explain: Annotated[
        bool,
        typer.Option(
            "--explain", help="Print what the peak is made of, by cause and line of source.", rich_help_panel=_DRY
        ),
    ] = False


def given_flags(options: Any) -> list[str]:
    """The flags of a group of options that were given."""
    names = [field.name for field in fields(options) if getattr(options, field.name) not in (None, False)]
    return [f"--{name.replace('_', '-')}" for name in names]
