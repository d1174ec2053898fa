"""``dsplan verify --calibrate``: measure this machine and keep its profile."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import typer

from dsplan.cli.trial_options import TrialOptions
from dsplan.errors import InputError, choice
from dsplan.timing.calibration import DEVICES


def calibrate(
    trial: TrialOptions,
    *,
    device: str,
    gpus: int | None,
    contradicting: Sequence[str],
    output: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Measure and say what was measured, and where it is kept.

    Args:
        trial: the name, and the drive.
        device: ``--device``; auto takes cuda.
        gpus: ``--gpus``; all devices by default, of CPU ranks two.
        contradicting: flags that were given and say nothing here.
        output: ``--output``, in place of the user's folder.
        force: overwrite.
        as_json: print JSON.

    Raises:
        InputError: an option that contradicts, a file that may not be written.
        NoDeviceError: there is no device to measure.
    """
    from dsplan.timing.calibration import run_calibration
    from dsplan.timing.profiles import user_file
    from dsplan.timing.summary import summary
    from dsplan.verify_device import choose_device

    if contradicting:
        raise InputError(
            f"{', '.join(contradicting)} and --calibrate contradict each other: the machine is measured, not a run"
        )
    if trial.nvme_path is not None and not trial.nvme_path.is_dir():
        raise InputError(f"--nvme-path: {trial.nvme_path} is no folder; name one on the drive that is to be measured")
    chosen = choose_device(choice("--device", "cuda" if device == "auto" else device, DEVICES))
    chosen.require(gpus or 1)
    name = trial.name or ("cpu" if chosen.accelerator is None else chosen.accelerator.name)
    path = user_file(name)
    if output is not None:
        path = output
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
    with _telling() as say:
        profile = run_calibration(
            path,
            device=chosen.kind,
            gpus=gpus or chosen.default_ranks,
            name=name,
            nvme_path=trial.nvme_path,
            force=force,
            on_progress=say,
        )
    found = summary(profile)
    named = name if output is None else str(path)
    if as_json:
        from dsplan.report.console import print_document

        print_document({"profile": name, "file": str(path), "description": profile.description, "rates": found})
        return
    typer.echo(f"profile {profile.description}")
    for words, value in found.items():
        typer.echo(f"  {words:42} {value:10,.2f}")
    typer.echo(f"kept in {path}; use it with --profile {named}")


@contextmanager
def _telling() -> Iterator[Callable[[str], None]]:
    """A callback for lines of progress: on a terminal one line that changes, elsewhere a line each."""
    import sys

    if not sys.stderr.isatty():
        yield lambda line: typer.echo(f"dsplan: {line}", err=True)
        return
    from rich.console import Console

    with Console(stderr=True).status("starting") as status:
        yield status.update
