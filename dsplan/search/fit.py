"""How big can it get: the largest model of a family, micro batch or sequence that fits, for each strategy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from dsplan.errors import InputError
from dsplan.estimate import estimate
from dsplan.hardware import Cluster
from dsplan.ladder import largest_that_fits
from dsplan.model import ModelShape
from dsplan.plan import Plan
from dsplan.search.memory import Weight, weigh
from dsplan.search.space import with_batch
from dsplan.verdict.judge import FITS

WHAT = ("model", "micro-batch", "sequence")
#: Layers beyond this are not looked for; sequences are tried in steps of so many tokens.
MOST_LAYERS, TOKENS = 4096, 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Largest:
    """The largest that fits with one strategy.

    Attributes:
        value: layers, samples or tokens; 0 when not even the smallest fits.
        num_parameters: of the model at that size.
        at_best, at_best_parameters: the same of what fits as far as its tensors go, without any fragmentation.
        weight: its memory; of the smallest when that does not fit.
    """

    strategy: str
    value: int
    num_parameters: int
    at_best: int
    at_best_parameters: int
    weight: Weight


def largest(
    what: str,
    model: ModelShape,
    plans: Sequence[Plan],
    cluster: Cluster,
    *,
    closely: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple[Largest, ...]:
    """The largest ``what`` of :data:`WHAT` for each plan.

    - ``model``: the family grows in depth: width, heads and vocabulary stay those of ``model``, as the minGPT
      benchmarks grew theirs (1.7B to 45B: 15 to 56 layers of one width).
    - ``micro-batch``: samples of a rank.
    - ``sequence``: tokens of a sample; positions are added to the model as needed.

    Args:
        model: what is scaled, or trained.
        plans: the strategies.
        cluster: the machines; they must name a device.
        closely: also ask the replay of the allocator (``dsplan estimate``'s verdict), where the closed bound on
            fragmentation says no and the tensors alone would fit; slower.
        on_progress: called with (plans done, plans in all).

    Raises:
        InputError: no device, or a model of transformers' whose depth its configuration fixes.
    """
    if cluster.accelerator is None or cluster.accelerator.usable_bytes is None:
        raise InputError("accelerator: what fits depends on the device; name one with --gpu")
    if what != "micro-batch" and model.decoder is not None:
        raise InputError(f"model: {model.name} is fixed by its configuration; only --what micro-batch can be asked")
    found = []
    for index, plan in enumerate(plans):
        found.append(_largest(what, model, plan, cluster, closely))
        if on_progress is not None:
            on_progress(index + 1, len(plans))
    return tuple(found)


def _largest(what: str, model: ModelShape, plan: Plan, cluster: Cluster, closely: bool) -> Largest:
    def sized(value: int) -> tuple[ModelShape, Plan]:
        if what == "model":
            return replace(model, num_layers=value), plan
        if what == "micro-batch":
            return model, with_batch(plan, value, plan.workload.gradient_accumulation_steps)
        length = value * TOKENS
        longer = replace(model, max_position_embeddings=max(length, model.max_position_embeddings))
        return longer, replace(plan, workload=replace(plan.workload, sequence_length=length))

    def fits(value: int) -> bool:
        if value > MOST_LAYERS:
            return False
        shape, tried = sized(value)
        weight = weigh(shape, tried, cluster)
        if weight.fits or not closely or weight.headroom_bytes < 0 or weight.short_of_host:
            return weight.fits
        (row,) = estimate(shape, [tried], cluster, ladder=False).plans
        return row.verdict == FITS

    def fits_at_best(value: int) -> bool:
        if value > MOST_LAYERS:
            return False
        weight = weigh(*sized(value), cluster)
        return weight.headroom_bytes >= 0 and not weight.short_of_host

    value = largest_that_fits(fits)
    at_best = largest_that_fits(fits_at_best, known=max(1, value), known_fits=value > 0 or fits_at_best(1))
    shape, tried = sized(max(1, value))
    unit = TOKENS if what == "sequence" else 1
    return Largest(
        strategy=plan.name,
        value=value * unit,
        num_parameters=shape.num_parameters,
        at_best=at_best * unit,
        at_best_parameters=sized(max(1, at_best))[0].num_parameters,
        weight=weigh(shape, tried, cluster),
    )
