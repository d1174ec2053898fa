"""DDP: levels of whole steps, by hand. Legend: Ψ parameters, T positions, L layers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from dsplan.engine import Run, engine_for
from dsplan.engine.ddp import BROADCAST_BYTES, BUCKET_BYTES, FIRST_BUCKET_BYTES, Ddp, bucket_bytes, ready_order
from dsplan.errors import InputError
from dsplan.ledger import Ledger, PhaseMemory
from dsplan.model import ModelShape
from dsplan.partition import parameter_sizes
from dsplan.plan import Plan
from dsplan.replay.walking import _Replay, walk_as
from dsplan.strategies import ddp_plans
from dsplan.walk import WalkResult
from dsplan.workload import Workload
from dsplan.zero import ZeroConfig
from tests.tapes import EXACT, shape

MODEL = shape(attention="eager")
PSI = MODEL.num_parameters
MASKS = 4 * MODEL.num_layers * MODEL.max_position_embeddings**2


def walked(model: ModelShape = MODEL, **changes: Any) -> WalkResult:
    workload = Workload(**{"sequence_length": 8, "precision": "fp16", **changes})
    return walk_as(model, Plan(name="ddp", ddp=True, workload=workload), 4, EXACT)


def phases(result: WalkResult, step: int) -> dict[str, PhaseMemory]:
    return result.steps[step].phases


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_weights_buckets_and_moments_are_fp32_whatever_autocast_does(precision: str) -> None:
    result = walked(precision=precision)
    assert phases(result, 0)["init"].level_bytes == 4 * PSI + 4 * PSI + MASKS  # weights, buckets
    for step in (1, 2):
        assert phases(result, step)["step"].level_bytes == 16 * PSI + MASKS  # and two moments; gradients are freed
        assert phases(result, step)["step"].peak_bytes == 24 * PSI + MASKS  # with gradients, and torch's temporaries


def test_gradients_exist_beside_the_buckets_at_the_end_of_the_backward() -> None:
    assert phases(walked(), 1)["backward"].level_bytes == 12 * PSI + MASKS  # no moments yet


def test_accumulated_gradients_are_added_in_place() -> None:
    once, twice = walked(), walked(gradient_accumulation_steps=2)
    assert phases(twice, 2)["backward"].level_bytes == phases(once, 2)["backward"].level_bytes
    assert phases(twice, 2)["step"].level_bytes == phases(once, 2)["step"].level_bytes


def test_the_buckets_of_the_second_step_take_what_the_first_bucket_took() -> None:
    result = walked()
    first, second = (phases(result, step)["forward"] for step in (1, 2))
    assert second.peak_bytes - first.peak_bytes == 8 * PSI  # the moments
    assert second.level_bytes - first.level_bytes == 8 * PSI


@pytest.mark.parametrize(("precision", "first", "second"), [("fp32", "bias", "weight"), ("bf16", "weight", "bias")])
def test_gradients_come_from_the_head_to_the_embedding(precision: str, first: str, second: str) -> None:
    """Under autocast in the reverse order of the casts, which are the arguments of one call, the last one first."""
    plan = Plan(name="ddp", ddp=True, workload=Workload(sequence_length=8, precision=precision))
    run = Run(model=MODEL, plan=plan, world_size=4, kernels=EXACT, ledger=Ledger(EXACT))
    order = ready_order(run)
    names = [MODEL.parameters[index].name for index in order]
    assert sorted(order) == list(range(len(MODEL.parameters)))
    assert names[0] == "lm_head.weight"
    assert names[-1] == "transformer.wte.weight"
    last = f"transformer.h.{MODEL.num_layers - 1}.mlp.c_proj"
    places = [names.index(name) for name in (f"{last}.{first}", f"{last}.{second}", "transformer.h.0.ln_1.weight")]
    assert places == sorted(places)


def test_buffers_are_broadcast_before_the_first_pass_of_a_step_alone() -> None:
    """distributed.py require_forward_param_sync: not after a pass under no_sync."""
    model = replace(MODEL, num_layers=2)
    plan = Plan(
        name="ddp", ddp=True, workload=Workload(sequence_length=8, precision="fp32", gradient_accumulation_steps=3)
    )
    ledger = Ledger(EXACT)
    engine = Ddp(Run(model=model, plan=plan, world_size=4, kernels=EXACT, ledger=ledger))
    rises = []
    ledger.begin_step("step")
    for number in range(6):
        ledger.begin("forward")
        engine.boundary = number % 3 == 2
        before = ledger.level
        engine.begin_forward()
        rises.append(ledger.peak - before)
        ledger.end()
    masks = 4 * 2 * model.max_position_embeddings**2
    assert rises == [masks, 0, 0, masks, 0, 0]


def test_a_broadcast_has_two_copies_of_at_least_250_mib_under_way() -> None:
    large = BROADCAST_BYTES // 4
    ledger = Ledger(EXACT)
    plan = Plan(name="ddp", ddp=True, workload=Workload(sequence_length=8))
    engine = Ddp(Run(model=MODEL, plan=plan, world_size=4, kernels=EXACT, ledger=ledger))
    ledger.begin_step("init")
    ledger.begin("init")
    engine._broadcast([1, large, 2, large, 3, large, large])  # of the last there is but a view
    ledger.end()
    assert ledger.steps[-1].phases["init"].peak_bytes == 4 * ((2 + large) + (3 + large))
    assert ledger.level == 0


def test_sgd_keeps_no_moments() -> None:
    assert phases(walked(optimizer="sgd"), 2)["step"].level_bytes == 8 * PSI + MASKS


def test_buckets_close_where_torch_closes_them_and_hold_every_gradient() -> None:
    small, large = FIRST_BUCKET_BYTES // 4, BUCKET_BYTES // 4
    assert bucket_bytes((small, large, 1, 1)) == (4 * small, 4 * large, 8)
    assert bucket_bytes((small - 1, 1, large - 1, 5)) == (4 * small, 4 * (large + 4))
    assert sum(bucket_bytes(parameter_sizes(MODEL))) == 4 * PSI


def test_the_plans_have_names_and_follow_the_kind_of_checkpointing() -> None:
    assert [plan.name for plan in ddp_plans(Workload())] == ["ddp", "ddp-ckpt"]
    assert [plan.name for plan in ddp_plans(Workload(activation_checkpointing="torch"))] == ["ddp-ckpt"]
    assert all(plan.ddp for plan in ddp_plans(Workload()))


def test_what_ddp_cannot_do_is_refused() -> None:
    with pytest.raises(InputError, match=r"stage: 2 is not allowed; ddp partitions nothing"):
        Plan(name="ddp", ddp=True, zero=ZeroConfig(stage=2))
    with pytest.raises(InputError, match=r"torch has no lion; with ddp use one of adamw"):
        ddp_plans(Workload(optimizer="lion"))


def test_what_is_live_at_the_peak_adds_up() -> None:
    plan = Plan(name="ddp", ddp=True, workload=Workload(sequence_length=8, precision="fp16"))
    steps = walked().steps
    peak = steps[1].phases["step"].peak_bytes
    ledger = Ledger(EXACT, target=("first step", "step", peak))
    run = Run(model=MODEL, plan=plan, world_size=4, kernels=EXACT, ledger=ledger)
    _Replay(run, engine_for).take()
    on_device = {term.name: term.size_bytes for term in ledger.snapshot if term.place == "device"}
    assert sum(on_device.values()) == peak
    assert on_device == {
        "fp32 parameters": 4 * PSI,
        "fp32 gradients": 4 * PSI,
        "gradient buckets of DDP": 4 * PSI,
        "optimizer states": 8 * PSI,
        "optimizer temporaries": 4 * PSI,
        "causal mask buffers": MASKS,
    }
