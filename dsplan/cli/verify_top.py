"""``dsplan verify --top K``: time the K best of the search and the baselines on this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from dsplan.cli.options import ModelOptions, WorkloadOptions
from dsplan.cli.trial_options import TrialOptions
from dsplan.cli.verify_options import DEFAULT_STEPS, RunOptions, given_flags
from dsplan.errors import EXIT_OK, InputError, choice, require_positive
from dsplan.hardware import Cluster

if TYPE_CHECKING:
    from dsplan.search.trials import Trial
    from dsplan.verify_device import ChosenDevice

DEVICES = ("auto", "cuda", "cpu")


def time_the_best(
    trial: TrialOptions,
    model: ModelOptions,
    workload: WorkloadOptions,
    run: RunOptions,
    *,
    contradicting: Sequence[str],
    timeout: float,
    folder: Path,
    output: Path | None,
    force: bool,
    as_json: bool,
) -> int:
    """Search, time, print; the exit code is that of the recommended configuration's run.

    Raises:
        InputError: an option that contradicts, nothing fits, or no rates are known of the device.
        NoDeviceError: there are too few devices.
        RunError: the runner itself broke off.
    """
    from dsplan.cli.flags import naming_flags
    from dsplan.cli.model_input import read_model_options
    from dsplan.cli.plan_input import strategy_plans
    from dsplan.cli.progress import progress
    from dsplan.cli.timing_options import read_profile_option
    from dsplan.cli.verify_input import default_model
    from dsplan.files import write_text
    from dsplan.report.console import print_document, stdout_console
    from dsplan.report.trials import print_trials, trials_document
    from dsplan.search.search import search
    from dsplan.search.trials import trials, tried
    from dsplan.timing.trials import run_trials
    from dsplan.verification import Job
    from dsplan.verify_device import choose_device

    assert trial.top is not None
    if contradicting:
        raise InputError(f"{', '.join(contradicting)} and --top contradict each other: the search chooses what is run")
    require_positive("--top", trial.top)
    wanted = choice("--device", run.device, DEVICES)
    device = choose_device("cuda" if wanted == "auto" else wanted)
    ranks = run.gpus or device.default_ranks
    device.require(ranks)
    shape = read_model_options(model).shape if given_flags(model) else default_model()
    cluster = _cluster(device, ranks, run.cap)
    plans = [
        plan
        for plan in strategy_plans(workload, shape, cluster)
        if plan.zero.offload_optimizer.device != "nvme" and not (device.kind == "cpu" and plan.zero.offloads_optimizer)
    ]
    sizes = () if workload.micro_batch_size is None else (workload.micro_batch_size,)
    with progress("Searching") as advance, naming_flags():
        result = search(
            shape,
            plans,
            cluster,
            profile=read_profile_option(trial.profile),
            sizes=sizes,
            what_if=False,
            on_progress=advance,
        )
    chosen = trials(result, trial.top)
    if not chosen:
        raise InputError("--top: nothing fits; dsplan recommend says why not")
    jobs = [
        Job(
            name=one.plan.name,
            model=shape,
            workload=one.plan.workload,
            ds_config=_emitted(one, shape, cluster),
            device=device,
            world_size=ranks,
            against=one.plan,
            steps=run.steps or DEFAULT_STEPS,
            memory_cap_bytes=_cap(run.cap),
        )
        for one in chosen
    ]
    with _telling(chosen) as say:
        outcomes = run_trials([job.specification() for job in jobs], folder, timeout_s=timeout, on_progress=say)
    found = [tried(one, outcome) for one, outcome in zip(chosen, outcomes, strict=True)]
    document = trials_document(result, found)
    if output is not None:
        import json

        write_text(output, json.dumps(document, indent=1, ensure_ascii=False) + "\n", force=force)
    if as_json:
        print_document(document)
    else:
        print_trials(stdout_console(), result, found)
    return found[0].outcome.exit_code or EXIT_OK


def _cap(text: str | None) -> int | None:
    from dsplan.units import parse_size

    return None if text is None else parse_size(text, "--cap")


def _cluster(device: ChosenDevice, ranks: int, cap: str | None) -> Cluster:
    """The machine as the search sees it: a CPU's ranks share its memory, a cap stands for a smaller card."""
    from dsplan import detect

    host = detect.host_memory_bytes()
    accelerator = device.accelerator
    limit = _cap(cap)
    if device.kind == "cpu":
        if limit is not None:
            raise InputError("--cap: torch limits the memory of CUDA devices only; this run is on cpu")
        assert accelerator is not None
        if host is None:
            raise InputError("--device cpu: how much memory this machine has cannot be read")
        accelerator = replace(accelerator, memory_bytes=host // ranks)
    elif accelerator is None:
        raise InputError("--top: nvidia-smi shows no device whose rates could be known; use --device cpu to try it")
    elif limit is not None:
        outside = accelerator.context_bytes + (accelerator.communication_bytes if ranks > 1 else 0)
        accelerator = replace(accelerator, memory_bytes=limit + outside, driver_reserve_bytes=0)
    return Cluster(accelerator=accelerator, gpus_per_node=ranks, host_memory_bytes=host)


def _emitted(one: Trial, shape: Any, cluster: Cluster) -> dict[str, Any]:
    from dsplan.dsconfig.emit import emit

    return emit(one.plan, shape, cluster)


@contextmanager
def _telling(chosen: Sequence[Trial]) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A callback for events of the runs: a bar on a terminal, a line for each stage elsewhere."""
    import sys

    def words(event: dict[str, Any]) -> str:
        one = chosen[event["trial"]]
        text = {"measured": "measured", "failed": "failed"}.get(event["event"], event.get("text", ""))
        where = f"{one.plan.name} with micro batch {one.plan.workload.micro_batch_size}"
        return f"{event['trial'] + 1} of {len(chosen)}, {where}: {text}"

    if not sys.stderr.isatty():
        yield lambda event: typer.echo(f"dsplan: {words(event)}", err=True)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(bar_width=20), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("starting", total=len(chosen))
        done = 0

        def show(event: dict[str, Any]) -> None:
            nonlocal done
            done += event["event"] in ("measured", "failed")
            bar.update(task, completed=done, description=words(event))

        yield show
