"""``dsplan recommend``: the fastest configuration that fits, of thousands."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dsplan.cli.inputs import read_inputs
from dsplan.cli.options import JsonOption, MachineOptions, ModelOptions, WorkloadOptions
from dsplan.cli.progress import progress
from dsplan.cli.timing_options import ProfileOption, read_profile_option

if TYPE_CHECKING:
    from dsplan.plan import Plan
    from dsplan.search.result import SearchResult

_NO_DRIVE = "it needs an NVMe drive on each node; name its folder with --nvme-path"


def recommend(
    *,
    model: ModelOptions,
    workload: WorkloadOptions,
    machine: MachineOptions,
    objective: Annotated[
        str,
        typer.Option(
            "--objective", metavar="NAME", help="speed (tokens a second), headroom or cost (device-seconds a token)."
        ),
    ] = "speed",
    global_batch_size: Annotated[
        int | None,
        typer.Option("--global-batch-size", metavar="N", help="Samples of one step of all ranks; accumulation fills."),
    ] = None,
    headroom: Annotated[
        str | None, typer.Option("--headroom", metavar="SIZE", help="Device memory that has to stay free: 2GiB.")
    ] = None,
    profile: ProfileOption = None,
    closely: Annotated[
        bool,
        typer.Option(
            "--closely",
            help="Ask the replay of the allocator about the winner and all that would be faster, not only about what "
            "would be 5 % faster; takes seconds for a deep model.",
        ),
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Write the winner as a DeepSpeed configuration."),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE.svg", help="Write memory against speed as a picture.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite files.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Search strategies, micro batches and buckets for the best configuration that fits, and say why not the others."""
    from dsplan.cli.flags import naming_flags
    from dsplan.errors import InputError, choice
    from dsplan.files import require_target, write_text
    from dsplan.search.result import OBJECTIVES, Rejected
    from dsplan.search.search import search
    from dsplan.units import MIB, parse_size

    objective = choice("--objective", objective, OBJECTIVES)
    if plot is not None and plot.suffix != ".svg":
        raise InputError(f"--plot: {plot} has the suffix {plot.suffix!r}; allowed: .svg")
    if output is not None and output == plot:
        raise InputError(f"--output {output} and --plot {plot} name one file; give two names")
    for path in (output, plot):
        if path is not None:
            require_target(path, force=force)
    if workload.micro_batch_size is not None and workload.micro_batch_size < 1:
        raise InputError(f"--micro-batch-size: {workload.micro_batch_size} is not allowed; at least 1")
    inputs = read_inputs(model, workload, machine)
    # A drive that nobody named cannot be planned with.
    left_out = () if machine.nvme_path else tuple(plan.name for plan in inputs.plans if _swaps(plan))
    plans = tuple(plan for plan in inputs.plans if plan.name not in left_out)
    free = 0 if headroom is None else parse_size(headroom, "--headroom")
    if headroom is not None and free < MIB:
        raise InputError(f"--headroom: {free} bytes is not allowed; at least 1 MiB, such as 2GiB")
    chosen = () if workload.micro_batch_size is None else (workload.micro_batch_size,)
    with progress("Searching") as advance, naming_flags():
        result = search(
            inputs.model,
            plans,
            inputs.cluster,
            profile=read_profile_option(profile),
            objective=objective,
            global_batch_size=global_batch_size,
            sizes=chosen,
            headroom_bytes=free,
            closely=closely,
            on_progress=advance,
        )
    result = replace(
        result, rejected=(*result.rejected, *(Rejected(strategy=name, fits=False, why=_NO_DRIVE) for name in left_out))
    )
    from dsplan.report.search import front_picture, print_search, search_document

    if output is not None:
        write_text(output, _configuration(result), force=force)
    if plot is not None:
        write_text(plot, front_picture(result), force=force)
    if as_json:
        from dsplan.report.console import print_document

        print_document(search_document(result))
        return
    from dsplan.report.console import stdout_console

    print_search(stdout_console(), result, inputs.inferred, asked=inputs.plans[0].workload)


def _swaps(plan: Plan) -> bool:
    return "nvme" in (plan.zero.offload_optimizer.device, plan.zero.offload_param.device)


def _configuration(result: SearchResult) -> str:
    """The winner as DeepSpeed reads it.

    Raises:
        InputError: nothing fits, so that there is nothing to write.
    """
    import json

    from dsplan.dsconfig.emit import emit
    from dsplan.errors import InputError

    winner = result.winner
    if winner is None:
        raise InputError("--output: nothing fits, so no configuration can be written; see the reasons without --output")
    return json.dumps(emit(winner.plan, result.model, winner.cluster), indent=2) + "\n"
