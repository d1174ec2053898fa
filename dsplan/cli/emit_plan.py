"""Which plan ``dsplan emit-config`` writes: the recommended one, the named one, or a file's, improved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsplan.cli.inputs import Inputs, read_inputs
from dsplan.cli.options import MachineOptions, ModelOptions, WorkloadOptions
from dsplan.cli.progress import progress
from dsplan.errors import InputError
from dsplan.recommend import whole_context

if TYPE_CHECKING:
    from dsplan.dsconfig.improve import Improvement
    from dsplan.dsconfig.read import DsConfig
    from dsplan.estimate import Estimate, PlanEstimate


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """The plan to write.

    Attributes:
        inputs: model, cluster and the plans that were estimated.
        estimate: of those plans.
        row: the one that is written.
        recommended: whether dsplan chose it among all; False when it was named or comes from a file.
        improvement: what was improved of a file; None without one.
    """

    inputs: Inputs
    estimate: Estimate
    row: PlanEstimate
    recommended: bool
    improvement: Improvement | None = None


def choose_plan(
    model: ModelOptions,
    workload: WorkloadOptions,
    machine: MachineOptions,
    *,
    strategy: str | None,
    from_file: Path | None,
    consumer: str | None,
) -> Chosen:
    """The plan that the options ask for; ``consumer`` is who reads ``from_file``.

    Raises:
        InputError: both a strategy and a file are given, no device is known to recommend one for, or nothing fits.
    """
    if from_file is not None:
        if strategy is not None:
            raise InputError(f"--strategy {strategy} and --from {from_file} contradict each other; give one of them")
        improvement, inputs = _improved(from_file, model, workload, machine, consumer)
        estimate = _estimate(inputs)
        row = estimate.plans[0]
        return Chosen(inputs=inputs, estimate=estimate, row=row, recommended=False, improvement=improvement)
    inputs = read_inputs(model, workload, machine, plan=strategy, plan_flag="--strategy")
    estimate = _estimate(inputs)
    row = _recommended(estimate) if strategy is None else estimate.plans[0]
    return Chosen(inputs=inputs, estimate=estimate, row=row, recommended=strategy is None)


def _improved(
    path: Path, model: ModelOptions, workload: WorkloadOptions, machine: MachineOptions, consumer: str | None
) -> tuple[Improvement, Inputs]:
    """The file improved, and the inputs with the plan that it says then."""
    from dsplan.cli.plan_input import configuration
    from dsplan.report.improvement import improvement_of

    inputs = read_inputs(model, workload, machine, ds_config=path, consumer=consumer)

    def read(document: Mapping[str, Any]) -> DsConfig:
        return configuration(path, workload, inputs.model, inputs.cluster, consumer=consumer, document=document)

    nvme_path = None if machine.nvme_path is None else str(machine.nvme_path)
    improvement = improvement_of(path, inputs.model, inputs.cluster, read, nvme_path=nvme_path)
    return improvement, replace(inputs, plans=(improvement.plan,))


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
    advice = estimate.recommendation_reason.removeprefix("no strategy fits; ")
    raise InputError(
        f"no strategy fits: {advice}, or write one anyway with --strategy"
        f"{whole_context(estimate.model, shortest.plan.workload)}. "
        f"Nearest: {shortest.plan.name}: {shortest.reason}"
    )
