"""Alike blocks: stage 3's coordinator that takes only some of them one by one is the one that takes each."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dsplan.engine.alike import AlikeCoordinator
from dsplan.engine.coordinator import Coordinator
from dsplan.engine.gathering import gather_steps, marks_and_saving, parts_of
from dsplan.engine.hook_parts import HookPart
from dsplan.engine.hooks import Mark
from dsplan.engine.parts_trace import PartsTrace
from dsplan.kernels import Kernels
from dsplan.model import ModelShape
from dsplan.workload import Workload
from dsplan.zero import OffloadParam, ZeroConfig

from ..tapes import EXACT, shape, small_shapes

E = 2
CHECKPOINTING = ("none", "none", "torch", "deepspeed")
#: Of a block's elements: budgets below a block, of a block, of several, and of more than there is.
SHARES = (0.0, 0.15, 0.5, 1.0, 1.7, 3.0, 9.0, 1e6)


def hooks_of(parts: tuple[HookPart, ...]) -> list[Mark]:
    return [mark for part in parts for number in range(len(part.layers)) for mark in part.marks_of(number)]


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(small_shapes(), st.sampled_from([1, 2, 5]), st.sampled_from(CHECKPOINTING), st.booleans())
def test_hooks_told_in_parts_are_those_told_one_by_one(
    model: ModelShape, num_layers: int, checkpointing: str, saves: bool
) -> None:
    model = replace(model, num_layers=num_layers)
    workload = Workload(sequence_length=1, activation_checkpointing=checkpointing)
    marks, saving = marks_and_saving(model, workload, EXACT, saves_weights=saves)
    parts = parts_of(model, workload, EXACT, saves_weights=saves)
    found = [(kind, module.name, module.parameters, module.saved) for kind, module in hooks_of(parts)]
    assert found == [(kind, module.name, module.parameters, module.saved) for kind, module in marks]
    of_parts = [part.saves for part in parts for _ in part.layers for _ in part.marks]
    assert {place for place in saving if not of_parts[place]} == set()
    # A module is one object, forward and backward.
    assert len({id(module) for _, module in hooks_of(parts)}) == len({id(module) for _, module in marks})


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    small_shapes(),
    st.sampled_from([1, 2, 7, 17, 40]),
    st.tuples(st.sampled_from(SHARES), st.sampled_from(SHARES), st.sampled_from(SHARES)),
    st.sampled_from([0, 0, 40, 10**5]),
    st.sampled_from([10**14, 1000, 100]),
    st.sampled_from([1, 2, 7, 64]),
    st.sampled_from(CHECKPOINTING),
    st.tuples(st.booleans(), st.booleans()),
    st.sampled_from([1, 1, 3]),
    st.sampled_from([EXACT, Kernels()]),
)
def test_a_pass_of_alike_blocks_is_that_of_each(
    model: ModelShape,
    num_layers: int,
    shares: tuple[float, float, float],
    threshold: int,
    whole: int,
    world_size: int,
    checkpointing: str,
    ways: tuple[bool, bool],
    micro_batches: int,
    kernels: Kernels,
) -> None:
    model = replace(model, num_layers=num_layers)
    block = model.num_parameters_per_block
    zero = ZeroConfig(
        stage=3, stage3_prefetch_bucket_size=int(shares[0] * block), stage3_max_live_parameters=int(shares[1] * block),
        stage3_max_reuse_distance=int(shares[2] * block), stage3_param_persistence_threshold=threshold,
        stage3_model_persistence_threshold=whole, offload_param=OffloadParam(device="cpu" if ways[0] else "none"),
    )  # fmt: skip
    workload = Workload(sequence_length=1, activation_checkpointing=checkpointing)
    marks, saving = marks_and_saving(model, workload, kernels, saves_weights=ways[1])
    parts = parts_of(model, workload, kernels, saves_weights=ways[1])
    one, other = (kind(model, zero, world_size, E, kernels) for kind in (Coordinator, AlikeCoordinator))
    assert isinstance(other, AlikeCoordinator)
    for _ in range(3):
        for _ in range(micro_batches):
            changes = one.run(marks, saving)
            assert other.run_parts(parts) == changes
            for position, length, times in other.repeats:
                assert changes[position : position + length * times] == changes[position : position + length] * times
            assert other.forgotten == one.forgotten
            assert other.leftovers() == one.leftovers()
            assert (other.status, other.saved, other.detached) == (one.status, one.saved, one.detached)
            assert other.in_flight.keys() == one.in_flight.keys()
        assert other.partition_all() == one.partition_all()
        assert other.gather_persistent() == one.gather_persistent()
        assert other.state() == one.state()
        assert other.level == one.level


def test_the_trace_of_parts_is_the_trace_of_every_hook() -> None:
    model = shape(num_layers=5, tie_word_embeddings=True)
    workload = Workload(sequence_length=1, activation_checkpointing="torch")
    marks, _ = marks_and_saving(model, workload, EXACT, saves_weights=False)
    made = Coordinator(model, ZeroConfig(stage=3), 2, E, EXACT)
    for _ in range(2):
        made.run(marks)
    trace = PartsTrace(parts_of(model, workload, EXACT, saves_weights=False), made.sizes)
    assert trace.queue == made._queue
    assert trace.elements_before == made._elements_before
    assert [trace.uses[parameter] for parameter in made._uses] == list(made._uses.values())


# What makes it fast, counted and not timed.


@pytest.mark.parametrize("prefetch", [0.0, 0.5, 1.0, 4.0])
@pytest.mark.parametrize("live", [0.0, 6.0, 1e6])
def test_most_blocks_are_not_taken_one_by_one(prefetch: float, live: float, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    run = Coordinator._run
    monkeypatch.setattr(Coordinator, "_run", lambda self, *rest: taken.append(rest) or run(self, *rest))

    def needed(num_layers: int) -> int:
        model = shape(num_layers=num_layers)
        block = model.num_parameters_per_block
        zero = ZeroConfig(
            stage=3, stage3_prefetch_bucket_size=int(prefetch * block), stage3_max_live_parameters=int(live * block),
            stage3_param_persistence_threshold=0, stage3_max_reuse_distance=0,
        )  # fmt: skip
        taken.clear()
        gather_steps(model, zero, 8, Workload(sequence_length=8), EXACT)
        return len(taken)

    assert needed(96) < 128  # of 384 in two passes
