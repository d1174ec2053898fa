"""``dsplan verify``: steps of the real engine, on a device or dry, against the prediction."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from dsplan.cli.options import ConsumerOption, JsonOption, ModelOptions, WorkloadOptions
from dsplan.cli.trial_options import TrialOptions
from dsplan.cli.verify_options import DryRunOptions, RunOptions, given_flags
from dsplan.errors import EXIT_OK, EXIT_PREDICTION_MISSED, InputError, RunError, require_positive


def verify(
    *,
    model: ModelOptions,
    workload: WorkloadOptions,
    run: RunOptions,
    dry: DryRunOptions,
    trial: TrialOptions,
    tolerance: Annotated[
        float,
        typer.Option("--tolerance", metavar="PERCENT", help="How far off the peak may be.", show_default=True),
    ] = 5.0,
    timeout: Annotated[
        float,
        typer.Option("--timeout", metavar="SECONDS", help="After which the run is ended.", show_default=True),
    ] = 600.0,
    keep_logs: Annotated[
        Path | None,
        typer.Option(
            "--keep-logs",
            metavar="DIR",
            help="Keep the logs and the ranks' records there (default: only of a run that fails).",
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write the measurement record there.")
    ] = None,
    force: Annotated[
        bool,
        typer.Option("--force", help="Overwrite the file; dry-run also with untested versions of torch and DeepSpeed."),
    ] = False,
    consumer: ConsumerOption = None,
    as_json: JsonOption = False,
) -> int:
    """Run a few DeepSpeed steps and hold the prediction against what they took.

    On a device of this machine the steps are real.
    A dry run needs no device: the real engine works on fake tensors, for any number of ranks.

    Without a model it verifies a small one that two CPU cores train in seconds.

    With --calibrate it measures this machine instead, for --profile; with --top K it times the K best configurations.

    Exit codes:
    0 the predicted peak is within the tolerance, or a dry run has what the formulas do not cover;
    1 it is not;
    2 bad input;
    3 no such device on this machine;
    4 out of memory;
    5 the run crashed;
    6 it took longer than the timeout;
    7 torch or DeepSpeed is not installed;
    130 interrupted.
    """
    from dsplan.cli.verify_cap import beside_the_plan
    from dsplan.cli.verify_input import describe, read_job
    from dsplan.cli.verify_progress import run_progress
    from dsplan.events.write import write_events
    from dsplan.files import require_target, write_text
    from dsplan.report.console import print_document, stdout_console
    from dsplan.report.verification import print_verification
    from dsplan.runner_process import require_run_extra
    from dsplan.verification import EVENTS, NotCovered, verification_document
    from dsplan.verification import verify as run_and_compare

    for flag, value in (("--tolerance", tolerance), ("--timeout", timeout)):
        if not 0 < value < float("inf"):
            raise InputError(f"{flag}: {value:g} is not allowed; it must be more than 0")
    if output is not None:
        require_target(output, force=force)
    if keep_logs is not None and keep_logs.exists() and not keep_logs.is_dir():
        raise InputError(f"--keep-logs: {keep_logs} is not a folder")
    if trial.calibrate or trial.top is not None:
        return _speed(trial, model, workload, run, dry, consumer, timeout, keep_logs, output, force, as_json)
    for flag in given_flags(trial):
        raise InputError(f"{flag}: goes with --calibrate or --top; give one of them")
    _require_targets(dry.events or (), output, force=force)
    job = replace(read_job(model, workload, run, dry, consumer=consumer), force=force, events=bool(dry.events))
    require_run_extra()
    typer.echo(f"dsplan: {describe(job)}", err=True)
    with _logs(keep_logs) as folder:
        try:
            with beside_the_plan(job), run_progress(job.steps) as on_progress:
                measurement, comparison = run_and_compare(
                    job, folder, timeout_s=timeout, tolerance_percent=tolerance, on_progress=on_progress
                )
        finally:  # of a run that died they say most
            events = folder / EVENTS
            for target in dry.events if dry.events and events.exists() else ():
                write_events(events, target, describe(job).partition(" (")[0], force=force)
    document = verification_document(measurement, comparison)
    if output is not None:
        import json

        write_text(output, json.dumps(document, indent=1, ensure_ascii=False) + "\n", force=force)
    if as_json:
        print_document(document)
    else:
        not_covered = job.against.settings if isinstance(job.against, NotCovered) else ()
        print_verification(stdout_console(), measurement, comparison, explain=dry.explain, not_covered=not_covered)
    return EXIT_OK if comparison is None or comparison.within_tolerance else EXIT_PREDICTION_MISSED


def _require_targets(events: Sequence[Path], output: Path | None, *, force: bool) -> None:
    """Raise InputError unless the files of ``--events`` may be written, each under a name of its own."""
    from dsplan.events.write import require_kind

    for target in events:
        require_kind(target, force=force)
        if [*events, output].count(target) > 1:
            raise InputError(f"--events: {target} is named twice; each file has a name of its own")


def _speed(
    trial: TrialOptions,
    model: ModelOptions,
    workload: WorkloadOptions,
    run: RunOptions,
    dry: DryRunOptions,
    consumer: str | None,
    timeout: float,
    keep_logs: Path | None,
    output: Path | None,
    force: bool,
    as_json: bool,
) -> int:
    """Measure the machine, or the best configurations on it, in place of one run's memory."""
    from dsplan.cli.verify_calibrate import calibrate
    from dsplan.cli.verify_top import time_the_best

    if run.gpus is not None:
        require_positive("--gpus", run.gpus)
    contradicting = [*given_flags(dry), *(["--for"] if consumer is not None else [])]
    if trial.calibrate:
        others = [flag for flag in given_flags(run) if flag not in ("--device", "--gpus")]
        others += [*(["--top"] if trial.top is not None else []), *(["--profile"] if trial.profile is not None else [])]
        calibrate(
            trial,
            device=run.device,
            gpus=run.gpus,
            contradicting=[*given_flags(model), *given_flags(workload), *others, *contradicting],
            output=output,
            force=force,
            as_json=as_json,
        )
        return EXIT_OK
    refused = ("--ds-config", "--strategy", "--data", "--share-devices", "--late-release", "--name", "--nvme-path")
    contradicting += [flag for flag in (*given_flags(run), *given_flags(trial)) if flag in refused]
    with _logs(keep_logs) as folder:
        folder.mkdir(parents=True, exist_ok=True)
        return time_the_best(
            trial,
            model,
            workload,
            run,
            contradicting=contradicting,
            timeout=timeout,
            folder=folder,
            output=output,
            force=force,
            as_json=as_json,
        )


@contextmanager
def _logs(keep: Path | None) -> Iterator[Path]:
    """The folder of the run: ``keep``, or one that stays only when the run fails, whose message names it."""
    if keep is not None:
        yield keep
        return
    folder = Path(tempfile.mkdtemp(prefix="dsplan-verify-"))
    try:
        yield folder
    except RunError:
        raise
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)
