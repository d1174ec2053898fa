"""``dsplan fit``: the largest model, micro batch or sequence that fits, for each strategy."""

from __future__ import annotations

import contextlib
from typing import Annotated

import typer

from dsplan.cli.inputs import read_inputs
from dsplan.cli.options import JsonOption, MachineOptions, ModelOptions, WorkloadOptions
from dsplan.cli.progress import progress


def fit(
    *,
    model: ModelOptions,
    workload: WorkloadOptions,
    machine: MachineOptions,
    what: Annotated[
        str | None,
        typer.Option(
            "--what",
            metavar="NAME",
            help="model (the family of --model grows in depth; the default), micro-batch (the default of transformers' "
            "decoders, whose size is fixed) or sequence.",
        ),
    ] = None,
    ddp: Annotated[bool, typer.Option("--ddp/--no-ddp", help="Also torch's DDP, to compare with.")] = True,
    closely: Annotated[
        bool, typer.Option("--closely", help="Replay the allocator where its fragmentation decides; takes longer.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Say how large a model, micro batch or sequence fits on the machines, for each strategy."""
    from dsplan.cli.flags import naming_flags
    from dsplan.errors import InputError, choice
    from dsplan.report.fit import fit_document, print_fit
    from dsplan.search.fit import WHAT, largest
    from dsplan.strategies import ddp_plans

    asked = None if what is None else choice("--what", what, WHAT)
    inputs = read_inputs(model, workload, machine)
    if asked == "sequence" and inputs.model.decoder is not None:
        raise InputError(
            f"--what sequence: only minGPTs grow in length here; dsplan estimate --ladder finds the longest sequence "
            f"of {inputs.model.name}"
        )
    what = asked or ("model" if inputs.model.decoder is None else "micro-batch")
    plans = inputs.plans
    if machine.nvme_path is None:
        plans = tuple(plan for plan in plans if plan.zero.offload_optimizer.device != "nvme")
    if ddp and inputs.model.decoder is None:
        with contextlib.suppress(InputError):  # torch has no such optimizer
            kept = ddp_plans(plans[0].workload)
            plans = (*(kept[:1] if workload.activation_checkpointing == "none" else kept), *plans)
    with progress("Fitting") as advance, naming_flags():
        rows = largest(what, inputs.model, plans, inputs.cluster, closely=closely, on_progress=advance)
    if as_json:
        from dsplan.report.console import print_document

        print_document(fit_document(what, inputs.model, inputs.cluster, rows))
        return
    from dsplan.report.console import stdout_console

    print_fit(stdout_console(), what, inputs.model, inputs.cluster, rows)
