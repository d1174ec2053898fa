"""Estimate: the memory of every plan, phase by phase, and which plan to take."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from dsplan.catalogue import accelerators
from dsplan.errors import InputError
from dsplan.hardware import Accelerator, Cluster
from dsplan.ladder import OnRung, largest_batch, longest_sequence
from dsplan.model import ModelShape
from dsplan.plan import Plan
from dsplan.recommend import lacks_drive, recommend
from dsplan.verdict.judge import DOES_NOT_FIT, FITS, TIGHT, UNKNOWN, Pressed
from dsplan.verdict.remedies import Remedy, proposals
from dsplan.verdict.rows import (
    BY_BOUND,
    BY_DRY_RUN,
    BY_PEAK,
    BY_REPLAY,
    DeviceEstimate,
    Estimate,
    HostEstimate,
    PlanEstimate,
)
from dsplan.verdict.walked import Walked, overhead_of, verdict_of

__all__ = [
    "BY_BOUND",
    "BY_DRY_RUN",
    "BY_PEAK",
    "BY_REPLAY",
    "DOES_NOT_FIT",
    "FITS",
    "TIGHT",
    "UNKNOWN",
    "DeviceEstimate",
    "Estimate",
    "HostEstimate",
    "PlanEstimate",
    "estimate",
    "overhead_of",
]


def estimate(
    model: ModelShape,
    plans: Sequence[Plan],
    cluster: Cluster,
    *,
    explain: bool = False,
    ladder: bool = True,
    closely: bool = False,
    exactly: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
    on_rung: OnRung | None = None,
    over: Callable[[Callable[[Plan], PlanEstimate], Sequence[Plan]], Iterable[PlanEstimate]] = map,
) -> Estimate:
    """Walk every plan and judge it.

    Args:
        model: the shape that is trained.
        plans: what to compare, fastest first (the order is the recommendation's).
        cluster: the machines; without an accelerator no plan gets a verdict of its own.
        explain: list the terms that are live at each plan's peak.
        ladder: find the largest micro batch that fits (needs an accelerator), by the closed bound on fragmentation.
        closely: replay the allocator for every plan, not only where its memory decides (:mod:`dsplan.verdict`) or the
            model is small (:mod:`dsplan.verdict.counted`), and find the largest micro batch by replays too, and what
            would help a plan that does not fit.
        exactly: also find the longest sequence.
        on_progress: called with (plans done, plans in all).
        on_rung: called with a few words before each rung of a ladder and each remedy, of which one plan may have many.
        over: works on every plan, in order: ``map``, or what does so on several processes.
    """

    def estimated(plan: Plan) -> PlanEstimate:
        return _estimate_plan(
            model, plan, cluster, explain=explain, ladder=ladder, closely=closely, exactly=exactly, on_rung=on_rung
        )

    rows = []
    for row in over(estimated, plans):
        rows.append(row)
        if on_progress is not None:
            on_progress(len(rows), len(plans))
    name, reason = recommend(
        [(row.plan.name, row.verdict, row.fits_on) for row in rows],
        cluster,
        lacks_drive=[row.plan.name for row in rows if lacks_drive(row.plan.zero)],
    )
    return Estimate(model=model, cluster=cluster, plans=tuple(rows), recommended=name, recommendation_reason=reason)


def _estimate_plan(
    model: ModelShape,
    plan: Plan,
    cluster: Cluster,
    *,
    explain: bool,
    ladder: bool,
    closely: bool,
    exactly: bool,
    on_rung: OnRung | None,
) -> PlanEstimate:
    _check_sequence(model, plan)
    walked = Walked(model, plan, cluster)
    device, host = walked.counted(however_large=closely or exactly), walked.host

    def overhead_on(card: Accelerator) -> int:
        return overhead_of(model, plan, card, cluster.world_size, host.pinned_bytes)

    pressed = walked.pressed(closely=closely)
    verdict, reason, headroom = verdict_of(device, host, cluster, pressed)
    largest = longest = None
    if (ladder or exactly) and cluster.accelerator is not None and cluster.accelerator.memory_bytes is not None:
        fits = verdict == FITS
        largest = largest_batch(model, plan, cluster, fits=fits, exactly=closely or exactly, on_rung=on_rung)
        longest = longest_sequence(model, plan, cluster, fits=fits, on_rung=on_rung) if exactly else None
    return PlanEstimate(
        plan=plan,
        device=device,
        host=host,
        verdict=verdict,
        reason=reason,
        headroom_bytes=headroom,
        fits_on=_cards(device, overhead_on),
        max_micro_batch_size=largest,
        max_sequence_length=longest,
        terms=walked.terms(device.peak_bytes) if explain or (closely and verdict == DOES_NOT_FIT) else (),
        remedies=()
        if not closely or verdict in (FITS, UNKNOWN)
        else _remedies(model, plan, cluster, walked, pressed, on_rung=on_rung),
        judged_by=BY_BOUND if pressed is None else BY_PEAK if pressed.reserved_bytes is None else BY_REPLAY,
        pressed=pressed,
    )


def _remedies(
    model: ModelShape,
    plan: Plan,
    cluster: Cluster,
    walked: Walked,
    pressed: Pressed | None,
    *,
    on_rung: OnRung | None,
) -> tuple[Remedy, ...]:
    """Every change that saves memory, with its verdict. What it saves is of the peak; of the allocator's settings, of
    what the run can live with."""
    if plan.ddp:
        return ()
    found = []
    for proposal in proposals(plan, cluster.allocator, world_size=cluster.world_size):
        if on_rung is not None:
            on_rung(f"{plan.name}: {proposal.change}")
        changed = replace(cluster, allocator=proposal.allocator)
        try:
            other = Walked(model, proposal.plan, changed)
            settings = proposal.allocator != cluster.allocator
            judged = other.pressed(closely=settings)
        except InputError:  # this plan cannot be had with that change
            continue
        saved = walked.device.device_bytes - other.device.device_bytes
        if settings and pressed is not None and judged is not None:
            saved = (pressed.least_bytes or 0) - (judged.least_bytes or 0)
        if saved > 0:
            verdict = verdict_of(other.device, other.host, changed, judged)[0]
            found.append(Remedy(change=proposal.change, saved_bytes=saved, verdict=verdict))
    return tuple(found)


def _check_sequence(model: ModelShape, plan: Plan) -> None:
    if plan.workload.sequence_length > model.max_position_embeddings:
        raise InputError(
            f"sequence_length: {plan.workload.sequence_length} tokens are more than the model's "
            f"{model.max_position_embeddings} positions; shorten the sequence or enlarge the positions"
        )


def _cards(device: DeviceEstimate, overhead_on: Callable[[Accelerator], int]) -> tuple[str, ...]:
    """Catalogued accelerators on which the plan fits, smallest memory first."""

    def need(card: Accelerator) -> int:
        return device.device_bound_bytes - device.overhead_bytes + overhead_on(card)

    cards = [card for card in accelerators() if card.usable_bytes is not None and need(card) <= card.usable_bytes]
    return tuple(card.name for card in sorted(cards, key=lambda card: card.usable_bytes or 0))
