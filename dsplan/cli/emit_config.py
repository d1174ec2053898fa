"""``dsplan emit-config``: the recommended strategy as a DeepSpeed configuration, checked before it is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dsplan.cli.inputs import Inputs, read_inputs
from dsplan.cli.options import JsonOption, MachineOptions, ModelOptions, WorkloadOptions
from dsplan.cli.progress import progress, waiting
from dsplan.errors import InputError, RunError

if TYPE_CHECKING:
    from dsplan.estimate import Estimate, PlanEstimate

_DEFAULT = Path("ds_config.json")


def emit_config(
    *,
    model: ModelOptions,
    workload: WorkloadOptions,
    machine: MachineOptions,
    strategy: Annotated[
        str | None, typer.Option("--strategy", metavar="NAME", help="This strategy instead of the recommended one.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Where to write it (default ds_config.json).")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False,
    to_stdout: Annotated[bool, typer.Option("--stdout", help="Print the configuration and write no file.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Write the recommended strategy, or a named one, as a DeepSpeed configuration."""
    from dsplan.dsconfig.emit import emit
    from dsplan.files import write_text
    from dsplan.report.console import print_document
    from dsplan.report.emitted import Emitted, emitted_document, print_emitted

    if to_stdout and (output is not None or as_json):
        raise InputError(f"--stdout and {'--json' if as_json else '--output'} contradict each other; give one of them")
    path = output or _DEFAULT
    inputs = read_inputs(model, workload, machine, plan=strategy, plan_flag="--strategy")
    if not to_stdout and path.exists() and not force:
        # write_text would say so too, but only after the estimate and DeepSpeed's check.
        raise InputError(f"{path}: exists already; choose another name or overwrite it with --force")
    estimate = _estimate(inputs)
    row = estimate.plans[0] if strategy is not None else _recommended(estimate)
    document = emit(row.plan, inputs.model, inputs.cluster)
    checked = _check(document, inputs.cluster.world_size)
    if to_stdout:
        print_document(document)
        return
    write_text(path, json.dumps(document, indent=2) + "\n", force=force)
    emitted = Emitted(
        path=path,
        document=document,
        estimate=estimate,
        row=row,
        recommended=strategy is None,
        checked_by_deepspeed=checked,
    )
    if as_json:
        print_document(emitted_document(emitted))
    else:
        print_emitted(emitted)


def _estimate(inputs: Inputs) -> Estimate:
    from dsplan import estimate as estimator

    with progress("Estimating") as advance:
        return estimator.estimate(inputs.model, inputs.plans, inputs.cluster, ladder=False, on_progress=advance)


def _recommended(estimate: Estimate) -> PlanEstimate:
    for row in estimate.plans:
        if row.plan.name == estimate.recommended:
            return row
    if estimate.cluster.accelerator is None:
        raise InputError(
            "no device to recommend a strategy for; name the device with --gpu or --device-memory, "
            "or the strategy with --strategy"
        )
    shortest = max(estimate.plans, key=lambda row: row.headroom_bytes or 0)
    raise InputError(
        f"no strategy fits: {estimate.recommendation_reason}. Nearest: {shortest.plan.name}: {shortest.reason}. "
        "Give more or larger GPUs, or write one anyway with --strategy"
    )


def _check(document: dict[str, Any], world_size: int) -> bool:
    """Whether DeepSpeed's own parser took ``document``; False when it could not be asked.

    Raises:
        InputError: the schema or the parser refuses it, which is a mistake of dsplan.
    """
    from tempfile import TemporaryDirectory

    from dsplan.dsconfig.deepspeed_parser import check_with_deepspeed
    from dsplan.dsconfig.schema import validate

    mistakes = validate(document)
    if mistakes:
        raise InputError(f"the configuration is not valid, please report this: {'; '.join(mistakes)}")
    with TemporaryDirectory(prefix="dsplan-") as folder, waiting("Asking DeepSpeed's parser"):
        candidate = Path(folder) / _DEFAULT.name
        candidate.write_text(json.dumps(document), encoding="utf-8")
        try:
            result = check_with_deepspeed(candidate, world_size)
        except RunError as error:
            # A DeepSpeed that does not start here says nothing about the file, which may be for another machine.
            typer.echo(f"dsplan: warning: {error}; checked against the schema only", err=True)
            return False
    if result is not None and not result.accepted:
        raise InputError(f"DeepSpeed refuses the configuration, please report this: {result.error}")
    return result is not None
