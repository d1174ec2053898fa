"""``estimate --exact``: the verdict of one plan by a dry run of the real engine in place of the formulas."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from dsplan.cli.inputs import Inputs
from dsplan.errors import EXIT_OUT_OF_MEMORY, InputError, RunError
from dsplan.estimate import BY_DRY_RUN, DOES_NOT_FIT, FITS, TIGHT, Estimate, PlanEstimate
from dsplan.measurement import Measurement
from dsplan.plan import Plan
from dsplan.verdict.host import judge_host

TIMEOUT_S = 1800.0
STEPS = 6


def exactly(inputs: Inputs, result: Estimate, *, advance: Callable[[int, int], None]) -> Estimate:
    """``result`` with the verdict of its one plan, or of the recommended one, by dry runs.

    Raises:
        InputError: there is no device, no recommended plan, or its device has no allocator that is replayed.
        MissingExtraError, RunError: see :func:`dsplan.runner_process.run_verification`.
    """
    row = _row(result)
    if row.pressed is None:
        raise InputError(f"--exact: a dry run needs a device with torch's allocator; {row.plan.name} has none: name a "
                         "GPU with --gpu")  # fmt: skip
    offered = row.pressed.offered_bytes
    asked = row.pressed.margin_bytes or _margin(row)
    measured, died = _dry_run(inputs, row.plan, offered - asked, advance)
    verdict, reason = FITS, ""
    if measured is None:
        measured, died = _dry_run(inputs, row.plan, offered, advance)
        verdict, reason = (DOES_NOT_FIT, died) if measured is None else (TIGHT, "it fits, without the margin")
    pressed = row.pressed
    if verdict == FITS and pressed.doubt:  # a dry run has one order of addresses, and one micro batch
        verdict, reason = TIGHT, pressed.doubt
    if measured is not None:
        pressed = replace(pressed, reserved_bytes=measured.peak_reserved_bytes, least_bytes=None)
    on_host = judge_host(row.host, inputs.cluster)  # of which a dry run of one rank says nothing
    if on_host.outranks(verdict):
        verdict, reason = on_host.verdict, on_host.reason
    exact = replace(row, verdict=verdict, reason=reason, judged_by=BY_DRY_RUN, pressed=pressed)
    return replace(result, plans=tuple(exact if other is row else other for other in result.plans))


def _row(result: Estimate) -> PlanEstimate:
    if len(result.plans) == 1:
        return result.plans[0]
    for row in result.plans:
        if row.plan.name == result.recommended:
            return row
    raise InputError("--exact: no plan is recommended; name one with --plan")


def _margin(row: PlanEstimate) -> int:
    from dsplan.verdict.bound import margin

    assert row.pressed is not None
    zero = row.plan.zero
    return margin(row.pressed.offered_bytes, several_streams=zero.stage > 0 and zero.overlaps_communication)


def _dry_run(
    inputs: Inputs, plan: Plan, capacity_bytes: int, advance: Callable[[int, int], None]
) -> tuple[Measurement | None, str]:
    """The dry run's record with that much for the allocator; or None, and how it died."""
    from dsplan.dsconfig.ddp import ddp_document
    from dsplan.dsconfig.emit import emit
    from dsplan.kernels import kernels_of
    from dsplan.verification import Job, NotCovered, verify
    from dsplan.verify_device import dry_run_device
    from dsplan.walk import worst_rank

    model, cluster = inputs.model, inputs.cluster
    ds_config: Mapping[str, Any] = emit(plan, model, cluster)
    if plan.ddp:
        ds_config = ddp_document(plan, ds_config)
    if inputs.ds_config is not None:
        ds_config = {**ds_config, **inputs.ds_config.document}
    job = Job(
        name=plan.name,
        model=model,
        workload=plan.workload,
        ds_config=ds_config,
        device=dry_run_device(cluster.accelerator, "--exact asks for one"),
        world_size=cluster.world_size,
        against=NotCovered(settings=()),
        steps=STEPS,
        memory_cap_bytes=capacity_bytes,
        rank=worst_rank(model, plan, cluster.world_size, kernels_of(cluster.accelerator)),
        allocator=cluster.allocator,
    )

    def follow(event: dict[str, Any]) -> None:
        if event.get("event") == "step":
            advance(int(event["step"]), STEPS)

    with tempfile.TemporaryDirectory(prefix="dsplan-") as folder:
        try:
            return verify(job, Path(folder), timeout_s=TIMEOUT_S, tolerance_percent=5, on_progress=follow)[0], ""
        except RunError as error:
            if error.exit_code != EXIT_OUT_OF_MEMORY:
                raise
            return None, str(error).splitlines()[0]
