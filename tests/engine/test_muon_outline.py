"""Muon's plans by outlines: the walk event by event, and walked directly where the batch leaves the copies no room."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dsplan import walk as walking
from dsplan.catalogue import preset
from dsplan.engine.muon_compiled import CACHE_BYTES
from dsplan.engine.outline import Batch, Cut, Outline, Phase, Room
from dsplan.engine.tracing import Interned, TracingLedger
from dsplan.kernels import Kernels
from dsplan.ledger import Ledger
from dsplan.model import ModelShape
from dsplan.plan import Plan
from dsplan.states import NEWTON_SCHULZ
from dsplan.walk import WalkResult, walk
from dsplan.workload import Workload
from dsplan.zero import OffloadOptimizer, OffloadParam, ZeroConfig

from ..tapes import CPU, EXACT, small_shapes

CUDA = Kernels()
NOWHERE = ("", "", -1)  # no step has this name: the walk goes event by event and finds nothing
CPU_STATES = OffloadOptimizer(device="cpu")
#: Matrices of a width at which Muon's copies are more than a few tokens' activations.
SHALLOW = replace(preset("gpt2-xl"), num_layers=2)
BUCKETS = 100_000
ZEROS = {
    "stage 0": ZeroConfig(stage=0),
    "stage 1": ZeroConfig(stage=1, reduce_bucket_size=BUCKETS),
    "stage 2": ZeroConfig(stage=2, reduce_bucket_size=BUCKETS),
    "stage 2, on the CPU": ZeroConfig(stage=2, reduce_bucket_size=BUCKETS, offload_optimizer=CPU_STATES),
    "stage 3": ZeroConfig(stage=3, reduce_bucket_size=BUCKETS),
    "stage 3, on the CPU": ZeroConfig(
        stage=3, reduce_bucket_size=BUCKETS, offload_optimizer=CPU_STATES, offload_param=OffloadParam(device="cpu")
    ),
}
ranks = st.sampled_from([1, 2, 3, 8])
workloads = st.builds(
    Workload,
    micro_batch_size=st.integers(1, 3),
    sequence_length=st.integers(1, 16),
    gradient_accumulation_steps=st.integers(1, 3),
    precision=st.sampled_from(["fp32", "fp16", "bf16"]),
    optimizer=st.just("muon"),
    activation_checkpointing=st.sampled_from(["none", "none", "torch"]),
)


def plan_of(zero: ZeroConfig, workload: Workload) -> Plan:
    return Plan(name="plan", zero=zero, workload=workload)


def directly(model: ModelShape, plan: Plan, world: int, kernels: Kernels = CUDA) -> WalkResult:
    return walk(model, plan, world, kernels, target=NOWHERE)


def tokens(number: int, precision: str = "bf16") -> Workload:
    return Workload(micro_batch_size=8, sequence_length=number, precision=precision, optimizer="muon")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(small_shapes(dropout=0.0), st.sampled_from(sorted(ZEROS)), workloads, ranks, st.sampled_from([CUDA, EXACT, CPU]))
def test_small_models(model: ModelShape, name: str, workload: Workload, world: int, kernels: Kernels) -> None:
    plan = plan_of(ZEROS[name], workload)
    assert walk(model, plan, world, kernels) == directly(model, plan, world, kernels)


@pytest.mark.parametrize("name", ZEROS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_batches_with_room_and_without(name: str, precision: str) -> None:
    for number in (1, 16, 1024):
        plan = plan_of(ZEROS[name], tokens(number, precision))
        assert walk(SHALLOW, plan, 2, CUDA) == directly(SHALLOW, plan, 2)


def is_outlined(monkeypatch: pytest.MonkeyPatch, zero: ZeroConfig, workload: Workload) -> bool:
    """Whether a plan is not walked directly."""
    walked = []
    original = walking._walk_rank
    monkeypatch.setattr(walking, "_walk_rank", lambda run: walked.append(run) or original(run))
    walk(SHALLOW, plan_of(zero, workload), 2, CUDA)
    monkeypatch.undo()
    return not walked


@pytest.mark.parametrize("name", ["stage 1", "stage 2", "stage 3"])
def test_from_some_batch_on_there_is_room(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    zero = ZEROS[name]
    low, high = 1, 1024
    assert not is_outlined(monkeypatch, zero, tokens(low))
    assert is_outlined(monkeypatch, zero, tokens(high))
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_outlined(monkeypatch, zero, tokens(middle)) else (middle, high)
    for number in (low, high):  # on both sides of where it begins
        plan = plan_of(zero, tokens(number))
        assert walk(SHALLOW, plan, 2, CUDA) == directly(SHALLOW, plan, 2)
    # And there alone has what the copies take another place: without room they are pinned.
    pinned = [directly(SHALLOW, plan_of(zero, tokens(number)), 2).pinned_bytes for number in (low, high)]
    assert pinned[0] > pinned[1]


def test_a_batch_that_lifts_the_highest_level_as_far_as_is_needed_has_the_outline() -> None:
    for lift, holds in ((29, True), (30, True), (31, False)):
        outline = Outline(
            steps=(
                ("init", (Phase("init", "", ((40, 10, ""),)),)),
                ("first", (Phase("forward", "", ((5, 5, ""),)), Phase("backward", "", ((9, -5, ""),)))),
            ),
            pinned_bytes=0,
            pageable_bytes=0,
            host_bytes=0,
            init_bytes=40,
            rooms=(Room(1, 1, Phase("backward", "", ((9, -5, ""),)), lift),),
        )
        batch = Batch(Cut({}, ()), 0, EXACT)
        assert outline.holds(batch) is holds  # the highest so far is 40, and 10 are left


def test_what_is_room_enough_with_every_batch_is_not_noted() -> None:
    ledger = TracingLedger(EXACT, Interned())
    ledger.begin_step("init")
    ledger.begin("init")
    ledger.temporary(NEWTON_SCHULZ, 100)
    assert ledger.room(1000) == 100  # in the initialisation it is known
    ledger.end()
    ledger.begin_step("first step")
    ledger.begin("backward")
    ledger.temporary(NEWTON_SCHULZ, 50)
    assert ledger.room(50) == 50
    assert ledger.outline().rooms == ()
    ledger.alloc(NEWTON_SCHULZ, 7)
    assert (ledger.room(44), ledger.room(60), ledger.room(45)) == (44, 60, 45)
    [room] = ledger.outline().rooms
    assert (room.step, room.phase, room.before.items, room.lift) == (1, 0, (), 67)


def test_a_ledger_with_the_batch_knows_its_room() -> None:
    ledger = Ledger(EXACT)
    ledger.begin_step("init")
    ledger.begin("init")
    ledger.temporary(NEWTON_SCHULZ, CACHE_BYTES)
    ledger.end()
    ledger.begin_step("first step")
    ledger.begin("step")
    ledger.alloc(NEWTON_SCHULZ, 10)
    assert ledger.room(0) == CACHE_BYTES - 10
