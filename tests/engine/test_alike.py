"""Alike blocks: stage 3's coordinator that takes only some of them one by one is the one that takes each."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dsplan.activations import BLOCK
from dsplan.engine.alike import AlikeCoordinator
from dsplan.engine.alike_state import ON_ITS_WAY_ALONE
from dsplan.engine.coordinator import Coordinator
from dsplan.engine.gathering import gather_steps, marks_and_saving, parts_of
from dsplan.engine.hook_parts import HookPart
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


def hooks_of(parts: tuple[HookPart, ...], prefix: str) -> list[tuple[int, str, tuple[int, ...], tuple[int, ...]]]:
    """Of every hook its kind, its module, and what that owns and autograd keeps of it, in indices of the model."""
    found = []
    for part in parts:
        for number, layer in enumerate(part.layers):
            base, block = part.base(number), f"{prefix}{layer}"
            for kind, name, *owned in part.hooks:
                whole = name if not part.stride else block if name == BLOCK else f"{block}.{name}"
                parameters, saved = (tuple([base + each for each in those]) for those in owned)
                found.append((kind, whole, parameters, saved))
    return found


def bytes_held(made: AlikeCoordinator) -> tuple[set[int], dict[int, int]]:
    """Parameters whose gathered storage autograd keeps, and the bytes of those that it alone has."""
    held = dict(enumerate(made.held))
    return {p for p, size in held.items() if size % 2}, {p: size // 2 for p, size in held.items() if size > 1}


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(small_shapes(), st.sampled_from([1, 2, 5]), st.sampled_from(CHECKPOINTING), st.booleans())
def test_hooks_told_in_parts_are_those_told_one_by_one(
    model: ModelShape, num_layers: int, checkpointing: str, saves: bool
) -> None:
    model = replace(model, num_layers=num_layers)
    workload = Workload(sequence_length=1, activation_checkpointing=checkpointing)
    marks, saving = marks_and_saving(model, workload, EXACT, saves_weights=saves)
    parts = parts_of(model, workload, EXACT, saves_weights=saves)
    assert hooks_of(parts, model.block_prefix) == [
        (kind, module.name, module.parameters, module.saved) for kind, module in marks
    ]
    of_parts = [part.saves for part in parts for _ in part.layers for _ in part.hooks]
    assert {place for place in saving if not of_parts[place]} == set()


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
            assert bytes_held(other) == (one.saved, one.detached)
            assert {p for p, stands in enumerate(other.stands) if stands >= ON_ITS_WAY_ALONE} == one.in_flight.keys()
            assert [stands > 0 for stands in other.stands] == [status > 0 for status in one.status]
        assert other.partition_all() == one.partition_all()
        assert other.gather_persistent() == one.gather_persistent()
        assert [stands > 0 for stands in other.state()] == [status > 0 for status in one.status]
        assert other.level == one.level


def test_the_trace_of_parts_is_the_trace_of_every_hook() -> None:
    model = shape(num_layers=5, tie_word_embeddings=True)
    workload = Workload(sequence_length=1, activation_checkpointing="torch")
    marks, _ = marks_and_saving(model, workload, EXACT, saves_weights=False)
    made = Coordinator(model, ZeroConfig(stage=3), 2, E, EXACT)
    for _ in range(2):
        made.run(marks)
    trace = PartsTrace(parts_of(model, workload, EXACT, saves_weights=False), made.sizes)
    assert trace.queue == [parameter for parameter, _ in made._queue]


# What makes it fast, counted and not timed.


@pytest.mark.parametrize("prefetch", [0.0, 0.5, 1.0, 4.0])
@pytest.mark.parametrize("live", [0.0, 6.0, 1e6])
def test_most_blocks_are_not_taken_one_by_one(prefetch: float, live: float, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    block = AlikeCoordinator._block
    monkeypatch.setattr(AlikeCoordinator, "_block", lambda self, *rest: taken.append(rest) or block(self, *rest))

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

    assert 0 < needed(96) < 128  # of 384 in two passes
