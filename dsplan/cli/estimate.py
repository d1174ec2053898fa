"""``dsplan estimate``: the memory of every strategy, and which one to take."""

from __future__ import annotations

from typing import Annotated

import typer

from dsplan.cli.inputs import read_inputs
from dsplan.cli.options import ConsumerOption, DsConfigOption, JsonOption, MachineOptions, ModelOptions, WorkloadOptions
from dsplan.cli.progress import progress


def estimate(
    *,
    model: ModelOptions,
    workload: WorkloadOptions,
    machine: MachineOptions,
    ds_config: DsConfigOption = None,
    consumer: ConsumerOption = None,
    plan: Annotated[
        str | None, typer.Option("--plan", metavar="NAME", help="Only this plan, such as zero2-ckpt.")
    ] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Print every term at the peak of --plan, or of the recommended plan.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Compare the GPU and CPU memory of every DeepSpeed strategy and recommend one."""
    from dsplan import estimate as estimator

    inputs = read_inputs(model, workload, machine, ds_config=ds_config, consumer=consumer, plan=plan)
    with progress("Estimating") as advance:
        result = estimator.estimate(
            inputs.model, inputs.plans, inputs.cluster, explain=explain and as_json, on_progress=advance
        )
    if as_json:
        from dsplan.report.console import print_document
        from dsplan.report.document import estimate_document

        print_document(estimate_document(result, inferred=inputs.inferred, ds_config=inputs.ds_config))
        return

    from dsplan.report.console import stdout_console
    from dsplan.report.table import print_estimate

    console = stdout_console()
    print_estimate(console, result, inferred=inputs.inferred, ds_config=inputs.ds_config)
    if explain:
        from dsplan.report.explain import print_explanation

        # Terms are followed one by one only for what is printed: that takes longer than the totals.
        plans = [found for found in inputs.plans if result.recommended in (None, found.name)]
        with progress("Explaining") as advance:
            explained = estimator.estimate(
                inputs.model, plans, inputs.cluster, explain=True, ladder=False, on_progress=advance
            )
        for row in explained.plans:
            print_explanation(console, explained, row)
