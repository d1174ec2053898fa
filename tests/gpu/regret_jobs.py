"""What is measured in which order: for every setting first what the search recommends, then the rest, fastest first.

Settings take turns, the largest model first, so that each has its best candidates measured when the time is up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import zip_longest
from typing import Any

from dsplan.catalogue import accelerator
from dsplan.dsconfig.emit import emit
from dsplan.estimate import overhead_of
from dsplan.hardware import Cluster
from dsplan.kernels import kernels_of
from dsplan.search.search import search
from dsplan.timing.rates import machine
from dsplan.timing.step_time import step_time
from dsplan.walk import walk
from tests.gpu.regret_settings import QUICK, RECOMMENDED, Setting

Job = dict[str, Any]


def capped(setting: Setting) -> Cluster:
    """The setting's machine: an H200 whose memory is the cap, and what lies outside the allocator on top of it."""
    card = accelerator("h200")
    outside = max(overhead_of(setting.model_shape(), plan, card, setting.ranks, 0) for plan in setting.plans())
    small = replace(card, memory_bytes=setting.cap_bytes + outside, driver_reserve_bytes=0)
    return Cluster(accelerator=small, gpus_per_node=setting.ranks)


def peak_bytes(setting: Setting, plan: Any) -> int:
    """Predicted peak of allocated memory of one rank."""
    result = walk(setting.model_shape(), plan, setting.ranks, kernels_of(accelerator("h200")))
    return max(step.peak_bytes for step in result.steps)


def jobs(settings: Sequence[Setting]) -> list[Job]:
    """All jobs of ``settings``; each has a setting, a strategy, a configuration and its micro batches."""
    ordered = sorted(settings, key=lambda setting: -setting.model_shape().num_parameters)
    turns = zip_longest(*(_of(setting) for setting in ordered))
    return [job for turn in turns for job in turn if job is not None]


def _of(setting: Setting) -> list[Job]:
    model, cluster = setting.model_shape(), capped(setting)
    of = machine(accelerator("h200"))
    found: list[Job] = []
    for strategy, closely in ((RECOMMENDED, not setting.searched), (QUICK, False)):
        result = search(
            model,
            list(setting.plans()),
            cluster,
            profile=of.profile,
            sizes=setting.searched,
            what_if=False,
            closely=closely,
        )
        if result.winner is None:
            continue
        plan = result.winner.plan
        job = _job(setting, strategy, plan, {plan.workload.micro_batch_size: peak_bytes(setting, plan)})
        if any(job["ds_config"] == other["ds_config"] for other in found):
            continue
        more = {"of": plan.name, "zero": asdict(plan.zero), "profile": of.profile.description}
        found.append(job | more | {"predicted_s": result.winner.time.seconds})
    timed = []
    for plan in setting.plans():
        peaks, best = {}, 0.0
        for size in setting.micro_batch_sizes:
            tried = next(one for one in setting.plans(size) if one.name == plan.name)
            peaks[size] = peak_bytes(setting, tried)
            if setting.fits(peaks[size]):
                best = max(best, step_time(model, tried, cluster, of).tokens_per_s)
        timed.append((best, _job(setting, plan.name, plan, peaks)))
    timed.sort(key=lambda pair: -pair[0])
    return [*found, *(job for _, job in timed)]


def _job(setting: Setting, strategy: str, plan: Any, peaks: dict[int, int]) -> Job:
    """``peaks``: predicted, by micro batch; in the order in which they are measured: the largest that fits comes last,
    since a run that dies ends the job.
    """
    return {
        "setting": setting.name,
        "strategy": strategy,
        "ds_config": emit(plan, setting.model_shape(), setting.cluster),
        "checkpointing": plan.workload.activation_checkpointing,
        "peaks": sorted(peaks.items()),
    }
