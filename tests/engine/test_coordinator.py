"""Coordinator: what stage 3 has gathered at every hook, by DeepSpeed's rules."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsplan.engine.coordinator import Change, Coordinator, Mark, persistent_parameters
from dsplan.engine.gathering import GatherStep, _marks, gather_steps, marks_and_saving
from dsplan.kernels import Kernels
from dsplan.model import ModelShape
from dsplan.partition import parameter_sizes
from dsplan.tape import ENTER, ENTER_BACKWARD, LEAVE, LEAVE_BACKWARD
from dsplan.units import round_up
from dsplan.workload import Workload
from dsplan.zero import OffloadParam, ZeroConfig

from ..tapes import CPU, EXACT, shape, small_shapes

E = 2
NOTHING = ZeroConfig(
    stage=3,
    stage3_prefetch_bucket_size=0,
    stage3_max_live_parameters=0,
    stage3_max_reuse_distance=0,
    stage3_param_persistence_threshold=0,
)
DEFAULT = ZeroConfig(stage=3)
WORKLOAD = Workload(sequence_length=8)
LEAVES = (LEAVE, LEAVE_BACKWARD)


def coordinator(model: ModelShape, zero: ZeroConfig, world_size: int) -> tuple[Coordinator, list[Mark]]:
    return Coordinator(model, zero, world_size, E, EXACT), _marks(model, WORKLOAD, EXACT)


def levels(changes: list[Change], start: int = 0) -> list[int]:
    found = []
    for _, net in changes:
        start += net
        found.append(start)
    return found


def test_the_first_pass_gathers_and_releases_module_by_module() -> None:
    model, world = shape(), 3
    made, marks = coordinator(model, NOTHING, world)
    sizes = parameter_sizes(model)
    changes = made.run(marks)
    embeddings = 0  # no gradient reaches the embeddings' inputs, so nothing tells DeepSpeed that they are done
    for (kind, module), (rise, net), level in zip(marks, changes, levels(changes), strict=True):
        whole = [sizes[parameter] for parameter in module.parameters]
        padded = [round_up(numel, world) for numel in whole]
        if kind in LEAVES:
            assert level == embeddings
        elif len(whole) == 1:  # gathered into its own storage, padded
            assert rise == net == E * padded[0]
        elif whole:  # into a flat buffer, from which each gets its own
            assert (rise, net) == (E * (sum(padded) + sum(whole)), E * sum(whole))
        if kind == ENTER_BACKWARD and module.name in ("transformer.wte", "transformer.wpe"):
            embeddings += E * padded[0]
    assert levels(changes)[-1] == embeddings > 0
    assert made.leftovers() == (0, -embeddings)
    assert made.level == 0


def test_with_no_budget_nothing_but_the_current_module_is_ever_gathered() -> None:
    model = shape()
    made, marks = coordinator(model, NOTHING, 4)
    first = made.run(marks), made.leftovers()
    for _ in range(3):
        assert (made.run(marks), made.leftovers()) == first
        assert made.partition_all() == made.gather_persistent() == 0


def test_a_model_below_the_limits_stays_gathered_at_the_turn() -> None:
    model, world = shape(), 2  # every size is even: nothing is padded
    made, marks = coordinator(model, replace(DEFAULT, stage3_param_persistence_threshold=0), world)
    turn = max(index for index, (kind, _) in enumerate(marks) if kind == LEAVE)
    first = levels(made.run(marks))
    made.leftovers()
    made.partition_all()
    second = levels(made.run(marks))
    assert first[turn] == 0  # the trace is not known yet
    assert second[turn] == E * model.num_parameters
    assert max(second) <= E * 2 * model.num_parameters


def test_prefetching_runs_ahead_by_its_budget() -> None:
    model = shape(num_layers=4)
    block = model.num_parameters_per_block
    peaks = []
    for prefetch in (0, block, 10 * block):
        made, marks = coordinator(model, replace(NOTHING, stage3_prefetch_bucket_size=prefetch), 2)
        made.zero = replace(made.zero, stage3_max_live_parameters=10**9)
        made.run(marks)
        made.leftovers()
        made.partition_all()
        peaks.append(max(levels(made.run(marks))))
    assert peaks == sorted(peaks)
    assert peaks[0] < peaks[1] < peaks[2]


def test_what_is_gathered_already_counts_against_the_limit() -> None:
    model = shape(num_layers=8)
    limit, largest = model.num_parameters_per_block, max(parameter_sizes(model))
    zero = replace(NOTHING, stage3_prefetch_bucket_size=10**9, stage3_max_live_parameters=limit)
    made, marks = coordinator(model, zero, 2)
    made.run(marks)
    made.leftovers()
    made.partition_all()
    # A batch may go beyond the limit by its last parameter, and so does the module that is needed now;
    # each parameter is there twice while its flat buffer is split.
    assert max(levels(made.run(marks))) <= E * 2 * (limit + 2 * largest) < E * model.num_parameters


def test_small_parameters_stay_gathered_between_steps() -> None:
    model = shape()
    zero = replace(NOTHING, stage3_param_persistence_threshold=48)
    kept = persistent_parameters(model, zero)
    sizes = parameter_sizes(model)
    assert kept == {index for index, numel in enumerate(sizes) if numel <= 48}
    first, second = steps(model, zero, 5)
    held = sum(E * round_up(sizes[index], 5) for index in kept)
    assert first.persistent == second.persistent == held
    assert second.released == -(held + left_open(second))
    # They are never released within the second step: its level stays at or above theirs.
    assert min(levels([change for one in second.passes for change in (*one.changes, one.leftovers)], held)) == held


def test_the_model_threshold_ends_what_persists() -> None:
    model = shape()
    zero = replace(DEFAULT, stage3_param_persistence_threshold=16, stage3_model_persistence_threshold=50)
    kept = persistent_parameters(model, zero)
    assert len(kept) == 3  # 16 elements each; a fourth would be the 64th element
    assert all(parameter_sizes(model)[index] == 16 for index in kept)


@pytest.mark.parametrize("zero", [NOTHING, DEFAULT])
def test_one_rank_gathers_only_what_is_on_the_host(zero: ZeroConfig) -> None:
    for step in steps(shape(), zero, 1):
        assert all(change == (0, 0) for one in step.passes for change in (*one.changes, one.leftovers))
        assert step.released == step.persistent == 0
    offloaded = steps(shape(), replace(zero, offload_param=OffloadParam(device="cpu")), 1)
    assert any(change[0] for change in offloaded[0].passes[0].changes)
    on_cpu = steps(shape(), replace(zero, offload_param=OffloadParam(device="cpu")), 1, kernels=CPU)
    assert not any(change[0] for change in on_cpu[0].passes[0].changes)  # they are there already


def steps(
    model: ModelShape, zero: ZeroConfig, world_size: int, workload: Workload = WORKLOAD, kernels: Kernels = EXACT
) -> tuple[GatherStep, ...]:
    return gather_steps(model, zero, world_size, workload, kernels)


def left_open(step: GatherStep) -> int:
    """What the passes of a step have added to what was gathered at its start."""
    return sum(net for one in step.passes for _, net in (*one.changes, one.leftovers))


zeros = st.builds(
    ZeroConfig,
    stage=st.just(3),
    stage3_prefetch_bucket_size=st.sampled_from([0, 1, 100, 3000, 50_000_000]),
    stage3_param_persistence_threshold=st.sampled_from([0, 16, 200, 100_000]),
    stage3_max_live_parameters=st.sampled_from([0, 100, 3000, 10**9]),
    stage3_max_reuse_distance=st.sampled_from([0, 100, 3000, 10**9]),
    offload_param=st.sampled_from([OffloadParam(), OffloadParam(device="cpu")]),
)
workloads = st.builds(
    Workload,
    sequence_length=st.just(8),
    activation_checkpointing=st.sampled_from(["none", "torch", "deepspeed"]),
    gradient_accumulation_steps=st.integers(1, 5),
)


@settings(max_examples=100, deadline=None)
@given(small_shapes(), zeros, st.integers(1, 9), workloads, st.sampled_from([EXACT, Kernels()]))
def test_every_step_ends_with_what_persists_and_nothing_else(
    model: ModelShape, zero: ZeroConfig, world_size: int, workload: Workload, kernels: Kernels
) -> None:
    level = 0
    for step in steps(model, zero, world_size, workload, kernels):
        for one in step.passes:
            for rise, net in (*one.changes, one.leftovers):
                assert rise >= max(net, 0)
                level += net
                assert level >= 0
        level += step.released
        assert level == 0  # the step releases everything, prefetched and persistent parameters too
        level += step.persistent
        assert level == step.persistent
    gathers = world_size > 1 or zero.offloads_parameters
    kept = persistent_parameters(model, zero) if gathers else ()
    padded = (round_up(parameter_sizes(model)[index], world_size) for index in kept)
    assert level == sum(round_up(E * numel, kernels.block_bytes) for numel in padded)


@settings(max_examples=60, deadline=None)
@given(small_shapes(), zeros, st.integers(1, 9), workloads)
def test_further_steps_repeat_the_last_one(
    model: ModelShape, zero: ZeroConfig, world_size: int, workload: Workload
) -> None:
    found = steps(model, zero, world_size, workload)
    marks, saving = marks_and_saving(model, workload, EXACT, saves_weights=not zero.memory_efficient_linear)
    made = Coordinator(model, zero, world_size, E, EXACT)
    for number in range(len(found) + 3):
        expected = found[min(number, len(found) - 1)]
        for one in expected.passes:
            assert tuple(made.run(marks, saving)) == one.changes
            assert made.leftovers() == one.leftovers
        assert made.partition_all() == expected.released
        assert made.gather_persistent() == expected.persistent


@settings(max_examples=30, deadline=None)
@given(small_shapes(), zeros, st.integers(1, 9), workloads, st.integers(1, 64))
def test_the_batch_does_not_matter(
    model: ModelShape, zero: ZeroConfig, world_size: int, workload: Workload, micro_batch_size: int
) -> None:
    larger = replace(workload, micro_batch_size=micro_batch_size, sequence_length=16)
    assert steps(model, zero, world_size, larger) == steps(model, zero, world_size, workload)


@pytest.mark.parametrize("kind", ["none", "torch", "deepspeed"])
def test_hooks_come_in_pairs_and_cover_every_parameter(kind: str) -> None:
    model = shape(tie_word_embeddings=True)
    marks = _marks(model, replace(WORKLOAD, activation_checkpointing=kind), EXACT)
    # Entering any module may prefetch; leaving matters for those that own parameters, and only they are marked.
    entered = [module.name for mark, module in marks if mark == ENTER]
    owning = [module.name for mark, module in marks if mark == ENTER and module.parameters]
    left = [module.name for mark, module in marks if mark == LEAVE]
    assert sorted(owning) == sorted(left)
    assert set(entered) > set(owning)
    runs = 1 if kind == "none" else 2  # a checkpointed block runs forward twice
    assert entered.count("transformer.h.1.mlp.c_fc") == runs
    assert entered.count("lm_head") == 1
    owned = {parameter for _, module in marks for parameter in module.parameters}
    assert owned == set(range(len(model.parameters)))


def held_at_the_turn(model: ModelShape, zero: ZeroConfig, kind: str) -> tuple[int, int]:
    """Gathered bytes when the loss is there, and the highest level of the backward pass over its start."""
    workload = replace(WORKLOAD, activation_checkpointing=kind)
    marks, saving = marks_and_saving(model, workload, EXACT, saves_weights=not zero.memory_efficient_linear)
    changes = Coordinator(model, zero, 2, E, EXACT).run(marks, saving)
    turn = next(position for position, (mark, _) in enumerate(marks) if mark == ENTER_BACKWARD)
    found = levels(changes)
    return found[turn - 1], max(found[turn:]) - found[turn - 1]


def test_torch_s_linear_layer_keeps_gathered_weights_until_its_backward() -> None:
    model = shape()
    assert held_at_the_turn(model, NOTHING, "none")[0] == 0
    weights = [p.numel for p in model.parameters if len(p.shape) == 2 and not p.name.startswith("transformer.w")]
    kept = replace(NOTHING, memory_efficient_linear=False)
    head = model.vocab_size * model.hidden_size
    assert held_at_the_turn(model, kept, "none")[0] == E * sum(weights)
    # A checkpointed block saves nothing in its first run.
    assert held_at_the_turn(model, kept, "torch")[0] == held_at_the_turn(model, kept, "deepspeed")[0] == E * head


def test_torch_s_checkpoint_keeps_what_its_second_run_saves() -> None:
    """Its saved tensors are detached ones, whose storage a release does not take (``_recomputation_hook``)."""
    model = shape(num_layers=1, hidden_size=64, vocab_size=8)
    torch, deepspeed = (held_at_the_turn(model, NOTHING, kind)[1] for kind in ("torch", "deepspeed"))
    block = E * sum(parameter.numel for parameter in model.block_parameters)
    assert torch >= block > deepspeed


@settings(max_examples=40, deadline=None)
@given(small_shapes(), zeros, st.integers(1, 9), workloads, st.booleans())
def test_autograd_keeps_nothing_after_the_backward(
    model: ModelShape, zero: ZeroConfig, world_size: int, workload: Workload, own_linear: bool
) -> None:
    zero = replace(zero, memory_efficient_linear=own_linear)
    marks, saving = marks_and_saving(model, workload, EXACT, saves_weights=not own_linear)
    made = Coordinator(model, zero, world_size, E, EXACT)
    for _ in range(3):
        made.run(marks, saving)
        made.leftovers()
        assert made.detached == {}
    made.partition_all()
    assert made.level == 0
