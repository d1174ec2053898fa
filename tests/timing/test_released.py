"""What stage 3 keeps between the passes, and what it costs the host where it does not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from dsplan.catalogue import accelerator, preset
from dsplan.hardware import Cluster
from dsplan.model import ModelShape
from dsplan.plan import Plan
from dsplan.strategies import find_plan, standard_plans
from dsplan.timing.engines import work_of
from dsplan.timing.host import RELEASED, host_times
from dsplan.timing.profile import Profile, profile_of
from dsplan.timing.rates import Machine, machine
from dsplan.timing.released import released_share
from dsplan.workload import Workload
from tests.timing import profiles

LARGE = replace(preset("gpt2-xl"), num_layers=32, hidden_size=4096, num_attention_heads=32)  # 201M a block


def plan_of(model: ModelShape, name: str, *, distance: int | None = None) -> Plan:
    plan = find_plan(standard_plans(model, Workload()), name)
    if distance is None:
        return plan
    return replace(plan, zero=replace(plan.zero, stage3_max_reuse_distance=distance))


def on(ranks: int) -> tuple[Cluster, Machine]:
    return Cluster(accelerator=accelerator("h200"), gpus_per_node=ranks), machine(
        accelerator("h200"), profiles.profile()
    )


def test_a_small_model_is_kept_whole_and_of_a_large_one_the_last_blocks() -> None:
    small = preset("gpt2")  # both passes of all of it are below 1e9 elements
    assert released_share(small, plan_of(small, "zero3")) == 0
    # 2 · (206M of the head + k · 201M) stays below 1e9 for k = 0 and 1
    assert released_share(LARGE, plan_of(LARGE, "zero3")) == 30 / 32
    # with recomputation 412M + 3 · k · 201M: for k = 0 only
    assert released_share(LARGE, plan_of(LARGE, "zero3-ckpt")) == 31 / 32
    assert released_share(LARGE, plan_of(LARGE, "zero3", distance=0)) == 1
    assert released_share(LARGE, plan_of(LARGE, "zero3", distance=10**12)) == 0
    assert released_share(LARGE, plan_of(LARGE, "zero2")) == 0


def test_what_is_kept_is_not_gathered_again() -> None:
    cluster, of = on(2)
    kept, released, some = (
        work_of(LARGE, plan_of(LARGE, "zero3", distance=distance), cluster, of) for distance in (10**12, 0, None)
    )
    assert kept.gather_backward_s == 0
    assert released.gather_backward_s == released.gather_forward_s == kept.gather_forward_s > 0
    assert some.gather_backward_s == pytest.approx(30 / 32 * released.gather_backward_s)


def test_a_rank_alone_has_nothing_to_gather() -> None:
    cluster, of = on(1)
    work = work_of(LARGE, plan_of(LARGE, "zero3", distance=0), cluster, of)
    assert (work.gather_forward_s, work.gather_backward_s, work.gather_update_s) == (0, 0, 0)
    offloaded = work_of(LARGE, plan_of(LARGE, "zero3-offload-param", distance=0), cluster, of)
    assert offloaded.gather_forward_s > 0


def with_released(seconds: float) -> Profile:
    """The made-up profile, whose host takes so much longer for a block of each pass when stage 3 releases it."""
    document = profiles.document()
    more: list[dict[str, Any]] = []
    for row in document["engine"]:
        if row["strategy"] == "zero3" and row["checkpointing"] == "none" and row["attention"] == "sdpa":
            longer = {phase: row[phase] + seconds * row["num_layers"] for phase in ("forward_s", "backward_s")}
            more.append({**row, **longer, "strategy": RELEASED})
    return profile_of({**document, "engine": [*document["engine"], *more]})


@pytest.mark.parametrize("name", ["zero3", "zero3-ckpt", "zero3-offload"])
def test_the_host_takes_longer_for_what_it_gathers_again(name: str) -> None:
    model = replace(LARGE, attention="sdpa", activation="gelu")
    plain = host_times(profiles.profile(), model, plan_of(model, name), 2)
    kept = host_times(with_released(1e-3), model, plan_of(model, name, distance=10**12), 2)
    assert kept == plain  # also by a profile that was made before
    released = host_times(with_released(1e-3), model, plan_of(model, name, distance=0), 2)
    assert released.forward - plain.forward == pytest.approx(32e-3)
    assert released.backward - plain.backward == pytest.approx(32e-3)
    assert released.step == plain.step
    some = host_times(with_released(1e-3), model, plan_of(model, name), 2)
    share = released_share(model, plan_of(model, name))
    assert some.forward - plain.forward == pytest.approx(share * 32e-3)
