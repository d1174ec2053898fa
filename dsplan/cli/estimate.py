"""``dsplan estimate``: the memory of every strategy, and which one to take."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from dsplan.cli.completion import plans, verdicts
from dsplan.cli.inputs import Inputs, read_inputs
from dsplan.cli.machine_input import allocator_settings
from dsplan.cli.options import ConsumerOption, DsConfigOption, JsonOption, MachineOptions, ModelOptions, WorkloadOptions
from dsplan.cli.progress import progress
from dsplan.errors import EXIT_FINDINGS

if TYPE_CHECKING:
    from dsplan.estimate import Estimate
    from dsplan.plan import Plan


def estimate(
    *,
    model: ModelOptions,
    workload: WorkloadOptions,
    machine: MachineOptions,
    ds_config: DsConfigOption = None,
    consumer: ConsumerOption = None,
    plan: Annotated[
        str | None,
        typer.Option("--plan", metavar="NAME", autocompletion=plans, help="Only this plan, such as zero2-ckpt."),
    ] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Print every term at the peak of --plan, or of the recommended plan.")
    ] = False,
    ladder: Annotated[
        bool,
        typer.Option(
            "--ladder",
            help="Find the largest micro batch and the longest sequence of each plan by replays of the allocator.",
        ),
    ] = False,
    alloc_conf: Annotated[
        str | None,
        typer.Option(
            "--alloc-conf",
            metavar="TEXT",
            help="How torch's allocator is set (default: PYTORCH_CUDA_ALLOC_CONF or PYTORCH_ALLOC_CONF of the "
            "environment).",
        ),
    ] = None,
    require: Annotated[
        str | None,
        typer.Option(
            "--require",
            metavar="VERDICT",
            autocompletion=verdicts,
            help="Exit with 1 unless the plan that was asked for, or else any, has this verdict: fits, or tight "
            "(which fits satisfies too).",
        ),
    ] = None,
    exact: Annotated[
        bool,
        typer.Option(
            "--exact",
            help="Judge --plan, or the recommended plan, by a dry run of the real engine (10 to 60 seconds; needs "
            "torch and DeepSpeed).",
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Compare the GPU and CPU memory of every DeepSpeed strategy and recommend one.

    Examples:
    dsplan estimate --params 45B --gpus 8
    dsplan estimate --model llama-3.1-8b --gpus 8 --gpu h100 --seq-len 4096
    dsplan estimate --model gpt2 --gpu t4 --plan zero2 --require fits
    dsplan estimate --model gpt2-xl --gpus 4 --gpu a100-40gb --ds-config FILE

    Exit codes:
    0 done;
    1 --require is not satisfied;
    2 bad input.
    """
    from dsplan import estimate as estimator
    from dsplan.cli.gate import missed, read_gate, require_memory, unasked
    from dsplan.cli.spread import cores, spread

    inputs = read_inputs(model, workload, machine, ds_config=ds_config, consumer=consumer, plan=plan)
    cluster = replace(inputs.cluster, allocator=allocator_settings(alloc_conf))
    if machine.gpu is None and cluster.accelerator is not None:  # this machine is the node
        from dsplan.detect import host_limits

        cluster = replace(cluster, limits=host_limits(swap_folders(inputs.plans)))
    inputs = replace(inputs, cluster=cluster)
    wanted = None if require is None else read_gate(require, inputs.cluster)
    if exact:
        require_memory("--exact", "a dry run needs a device", inputs.cluster)
    if ladder:
        require_memory("--ladder", "finds what fits on a device", inputs.cluster)
    alone = len(inputs.plans) == 1
    spreads = ladder and not alone and cores() > 1
    # Terms are followed one by one for what is printed only: of many plans later, for the recommended one.
    at_once = explain and (as_json or alone or ladder)
    with progress("Estimating") as advance:
        result = estimator.estimate(
            inputs.model,
            inputs.plans,
            inputs.cluster,
            explain=at_once,
            closely=alone or ladder,
            exactly=ladder,
            on_progress=advance,
            on_rung=None if spreads else advance.say,
            over=spread if spreads else map,
        )
    if exact:
        from dsplan.cli.exact import exactly

        with progress("Dry run") as advance:
            result = exactly(inputs, result, advance=advance)
    _show(inputs, result, explain=explain, as_json=as_json)
    if wanted is not None and (why := missed(wanted, result)):
        typer.echo(f"dsplan: {why}", err=True)
        raise typer.Exit(EXIT_FINDINGS)
    if wanted is not None and (doubt := unasked(wanted, inputs.cluster)):
        typer.echo(f"dsplan: warning: {doubt}", err=True)


def swap_folders(plans: Iterable[Plan]) -> list[str]:
    """The folders that plans swap to (``nvme_path``), where they say which."""
    offloads = [offload for plan in plans for offload in (plan.zero.offload_optimizer, plan.zero.offload_param)]
    return [offload.nvme_path for offload in offloads if offload.device == "nvme" and offload.nvme_path]


def _show(inputs: Inputs, result: Estimate, *, explain: bool, as_json: bool) -> None:
    from dsplan import estimate as estimator

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

        rows = [row for row in result.plans if result.recommended in (None, row.plan.name)]
        if not all(row.terms for row in rows):
            with progress("Explaining") as advance:
                plans = [row.plan for row in rows]
                result = estimator.estimate(
                    inputs.model, plans, inputs.cluster, explain=True, ladder=False, on_progress=advance
                )
            rows = list(result.plans)
        for row in rows:
            print_explanation(console, result, row)
