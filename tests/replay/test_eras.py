"""The rules of DeepSpeed 0.3.13 and of torch 1.8, on models small enough to follow by hand."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import pytest

from dsplan.engine.gathering import _marks, gather_steps
from dsplan.ledger import StepMemory
from dsplan.model import ModelShape
from dsplan.plan import Plan
from dsplan.replay.cases import case
from dsplan.replay.deepspeed_0_3_13 import RULES, OldStage3
from dsplan.replay.eras import account
from dsplan.replay.gathering_0_3_13 import old_gather_steps
from dsplan.replay.torch_1_8 import OldDdp
from dsplan.replay.walking import walk_as
from dsplan.tape import ENTER_BACKWARD
from dsplan.workload import Workload
from dsplan.zero import OffloadOptimizer, ZeroConfig
from tests.tapes import EXACT, shape

MODEL = shape(num_layers=3)
H = MODEL.hidden_size
MATRICES = 2 * 12 * H * H  # of a block, in bytes
HEAD = 2 * MODEL.vocab_size * H
ENDS = 2 * (MODEL.vocab_size + MODEL.max_position_embeddings) * H  # the embeddings


def turn(model: ModelShape = MODEL, *, keeps: bool = False, ranks: int = 2, step: int = 1, **keys: Any) -> int:
    """Gathered bytes between the forward and the backward pass of a step."""
    kind = keys.pop("kind", "none")
    zero = ZeroConfig(
        **{
            "stage": 3,
            "stage3_max_live_parameters": 0,  # no prefetching
            "stage3_max_reuse_distance": 0,
            "stage3_param_persistence_threshold": 0,
            **keys,
        }
    )
    workload = Workload(sequence_length=1, activation_checkpointing=kind)
    steps = old_gather_steps(model, zero, ranks, workload, EXACT, autograd_keeps=keeps)
    marks = _marks(model, workload, EXACT)
    forward = next(index for index, (kind, _) in enumerate(marks) if kind == ENTER_BACKWARD)
    return sum(net for _, net in steps[step].passes[0].changes[:forward])


def test_without_prefetch_and_reuse_nothing_stays_gathered() -> None:
    assert turn() == 0
    assert turn(ranks=1) == 0


def test_autograd_keeps_the_weight_of_every_linear_layer() -> None:
    assert turn(keeps=True) == 3 * MATRICES + HEAD


def test_a_checkpointed_block_keeps_none() -> None:
    assert turn(keeps=True, kind="deepspeed") == HEAD


def test_a_prefetch_takes_one_parameter_at_least_and_what_fills_the_bucket_at_most() -> None:
    norm = 2 * H  # what comes after the head in the backward pass is the final norm, parameter by parameter
    assert turn(stage3_max_live_parameters=10**9, stage3_prefetch_bucket_size=0) == norm
    assert turn(stage3_max_live_parameters=10**9, stage3_prefetch_bucket_size=H + 1) == 2 * norm


def test_no_second_prefetch_starts_while_one_is_on_its_way() -> None:
    """With a bucket of one element at most one parameter is there beside the submodule at work; today more."""
    zero = ZeroConfig(
        stage=3, stage3_prefetch_bucket_size=1, stage3_max_reuse_distance=0, stage3_param_persistence_threshold=0
    )
    workload = Workload(sequence_length=1)
    then = old_gather_steps(MODEL, zero, 2, workload, EXACT, autograd_keeps=False)[1].passes[0].changes
    today = gather_steps(MODEL, zero, 2, workload, EXACT)[-1].passes[0].changes
    forward = next(index for index, (kind, _) in enumerate(_marks(MODEL, workload, EXACT)) if kind == ENTER_BACKWARD)
    largest = 2 * max(parameter.numel for parameter in MODEL.parameters)
    biases = 2 * 4 * H
    assert max(accumulate(net for _, net in then[:forward])) <= 2 * (largest + biases)
    assert max(accumulate(net for _, net in today[:forward])) > 2 * (largest + biases)


def test_what_is_used_again_soon_is_kept() -> None:
    # Between the head's two uses nothing else is used; between the final norm's, the head, twice.
    assert turn(stage3_max_reuse_distance=1) == HEAD
    assert turn(stage3_max_reuse_distance=2 * HEAD // 2) == HEAD
    assert turn(stage3_max_reuse_distance=2 * HEAD // 2 + 1) == HEAD + 2 * 2 * H
    assert turn(stage3_max_reuse_distance=10**12) == 3 * (MATRICES + 2 * 13 * H) + HEAD + 2 * 2 * H + ENDS


def test_what_persists_is_partitioned_and_gathered_in_every_step() -> None:
    small = 3 * 2 * 13 * H + 2 * 2 * H
    assert turn(stage3_param_persistence_threshold=4 * H + 1) == 0  # gathered before the step began, and unchanged
    zero = ZeroConfig(stage=3, stage3_param_persistence_threshold=4 * H + 1)
    steps = old_gather_steps(MODEL, zero, 2, Workload(sequence_length=1), EXACT, autograd_keeps=False)
    assert {step.persistent for step in steps} == {small}
    for step in steps:
        (one,) = step.passes
        assert sum(net for _, net in one.changes) + one.leftovers[1] == (0 if step is steps[0] else -small)


def old(rules: set[str], **keys: Any) -> list[StepMemory]:
    offload = keys.pop("offload", False)
    section = {"stage": 3, "reduce_bucket_size": 1000, "overlap_comm": True, **keys}
    if offload:
        section["offload_optimizer"] = OffloadOptimizer(device="cpu")
    plan = Plan(name="old", zero=ZeroConfig(**section), workload=Workload(sequence_length=8, precision="fp16"))
    return list(walk_as(MODEL, plan, 2, EXACT, lambda run: OldStage3(run, frozenset(rules))).steps)


def level(steps: list[StepMemory], step: int, phase: str) -> int:
    return steps[step].phases[phase].level_bytes


def test_buckets_live_in_the_backward_pass_only() -> None:
    today, then = old(set()), old({"buckets"})
    assert level(today, 0, "init") - level(then, 0, "init") == 2 * 1000
    assert level(today, 1, "forward") - level(then, 1, "forward") == 2 * 1000
    assert level(today, 1, "backward") - level(then, 1, "backward") == 2 * 1000
    # Two of them from the start of the backward pass, where today has one.
    assert then[1].phases["backward"].peak_bytes - today[1].phases["backward"].peak_bytes == 2 * 1000


def test_the_gradient_partition_dies_with_the_step() -> None:
    today, then = old(set()), old({"gradients"})
    partition = 2 * sum(-(-parameter.numel // 2) for parameter in MODEL.parameters)
    assert level(today, 0, "init") - level(then, 0, "init") == partition
    assert level(today, 1, "backward") == level(then, 1, "backward")
    assert level(today, 1, "step") - level(then, 1, "step") == partition


def test_staging_stays_with_offload_only() -> None:
    largest = max(-(-parameter.numel // 2) for parameter in MODEL.parameters)
    rise = level(old({"staging"}, offload=True), 0, "init") - level(old(set(), offload=True), 0, "init")
    assert rise == 2 * 2 * largest
    assert level(old({"staging"}), 0, "init") == level(old(set()), 0, "init")


def test_no_rule_is_today() -> None:
    plan = Plan(name="x", zero=ZeroConfig(stage=3), workload=Workload(sequence_length=8, precision="fp16"))
    today = walk_as(MODEL, plan, 2, EXACT)
    assert today == walk_as(MODEL, plan, 2, EXACT, lambda run: OldStage3(run, frozenset()))


def test_ddp_of_1_8_keeps_its_gradients_and_takes_one_tensor_at_a_time() -> None:
    psi = MODEL.num_parameters
    plan = Plan(name="ddp", ddp=True, workload=Workload(sequence_length=8, precision="fp32"))

    def walked(*rules: str) -> StepMemory:
        return walk_as(MODEL, plan, 2, EXACT, lambda run: OldDdp(run, frozenset(rules))).steps[-1]

    today, kept, single = walked(), walked("gradients"), walked("optimizer")
    assert kept.phases["step"].level_bytes - today.phases["step"].level_bytes == 4 * psi
    assert kept.phases["backward"].level_bytes == today.phases["backward"].level_bytes
    largest = max(parameter.numel for parameter in MODEL.parameters)
    # Two temporaries of one tensor in place of one of all.
    assert today.phases["step"].peak_bytes - single.phases["step"].peak_bytes == 4 * psi - 2 * 4 * largest


@pytest.mark.parametrize("name", ["1.7B-ddp", "1.7B-zero3", "1.7B-zero3-offload-ckpt"])
def test_an_account_adds_up(name: str) -> None:
    found = account(case(name))
    assert found.then_bytes == found.today_bytes + sum(change.size_bytes for change in found.changes)
    assert found.era
    assert found.moment.startswith("backward")


def test_runs_of_other_years_are_not_explained_by_2021() -> None:
    assert account(case("gaudi-gpt2-zero2")).era == ""
    assert account(case("1.6B-zero2")).changes == ()  # nothing of stage 2 has been worked out
    assert list(RULES) == ["prefetching", "autograd", "buckets", "gradients", "staging", "projections"]
