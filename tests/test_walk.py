"""Walk: levels and peaks of whole steps, properties that hold for every plan, and the states of the papers.

Legend: Ψ parameters, Ψp padded to 2N, N ranks, e bytes of a model element.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dsplan import states
from dsplan.catalogue import preset
from dsplan.kernels import Kernels
from dsplan.ledger import DEVICE, PINNED, StepMemory, Term
from dsplan.model import ModelShape
from dsplan.partition import padded_elements, parameter_sizes
from dsplan.plan import Plan
from dsplan.strategies import find_plan, standard_plans
from dsplan.units import ceil_div
from dsplan.walk import FIRST_STEP, STEADY_STATE, WalkResult, walk, worst_rank
from dsplan.workload import Workload

from .tapes import CPU, EXACT, shape, small_shapes

CUDA = Kernels()
WORKLOAD = Workload(sequence_length=8)
PHASES = ("forward", "backward", "step")

quick = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])

models = small_shapes()
workloads = st.builds(
    Workload,
    micro_batch_size=st.integers(1, 3),
    sequence_length=st.integers(1, 16),
    gradient_accumulation_steps=st.integers(1, 4),
    precision=st.sampled_from(["fp32", "fp16", "bf16"]),
    optimizer=st.sampled_from(["adamw", "adam", "sgd", "lion", "adagrad"]),
)
worlds = st.sampled_from([1, 2, 3, 5, 8, 64])


def plans(model: ModelShape, workload: Workload = WORKLOAD) -> tuple[Plan, ...]:
    return standard_plans(model, workload, nvme_path="/scratch")


def plan(name: str, model: ModelShape, workload: Workload = WORKLOAD) -> Plan:
    return find_plan(plans(model, workload), name)


def peak(result: WalkResult) -> int:
    return max(step.peak_bytes for step in result.steps)


def phases(result: WalkResult) -> Iterator[tuple[StepMemory, str]]:
    for step in result.steps:
        for phase in step.phases:
            yield step, phase


@quick
@given(models, workloads, worlds, st.sampled_from([CUDA, EXACT, CPU]))
def test_every_plan_walks_and_no_level_is_above_its_peak(
    model: ModelShape, workload: Workload, world_size: int, kernels: Kernels
) -> None:
    if kernels is CPU and model.attention == "sdpa":
        model = replace(model, dropout=0.0)
    for tried in plans(model, workload):
        result = walk(model, tried, world_size, kernels)
        assert [step.name for step in result.steps][:2] == ["init", FIRST_STEP]
        assert result.steps[-1].name == STEADY_STATE
        assert all(tuple(step.phases) == PHASES for step in result.steps[1:])
        for step, phase in phases(result):
            memory = step.phases[phase]
            assert 0 <= memory.level_bytes <= memory.peak_bytes <= peak(result)
            assert memory.peak_moment
        assert result.host_bytes <= result.pinned_bytes + result.pageable_bytes


@quick
@given(models, workloads, worlds, st.sampled_from([CUDA, EXACT, CPU]))
def test_the_terms_at_the_peak_add_up_to_it(
    model: ModelShape, workload: Workload, world_size: int, kernels: Kernels
) -> None:
    if kernels is CPU and model.attention == "sdpa":
        model = replace(model, dropout=0.0)
    for tried in plans(model, workload):
        result = walk(model, tried, world_size, kernels)
        highest = max(result.steps, key=lambda step: step.peak_bytes)
        explained = walk(
            model, tried, world_size, kernels, target=(highest.name, highest.peak_phase, highest.peak_bytes)
        )
        assert explained.steps == result.steps  # event by event, as in stretches
        assert all(term.size_bytes > 0 for term in explained.terms)
        on_device = [term.size_bytes for term in explained.terms if kernels.one_pool or term.place == DEVICE]
        assert sum(on_device) == highest.peak_bytes, tried.name


@quick
@given(models, workloads, worlds)
def test_a_larger_micro_batch_never_needs_less(model: ModelShape, workload: Workload, world_size: int) -> None:
    larger = replace(workload, micro_batch_size=workload.micro_batch_size + 1)
    for few, many in zip(plans(model, workload), plans(model, larger), strict=True):
        before, after = walk(model, few, world_size, CUDA), walk(model, many, world_size, CUDA)
        assert peak(before) <= peak(after)
        for (first, phase), (second, _) in zip(phases(before), phases(after), strict=True):
            assert first.phases[phase].peak_bytes <= second.phases[phase].peak_bytes
        assert before.host_bytes == after.host_bytes


def test_the_peak_grows_with_the_batch_where_activations_are_the_peak() -> None:
    model = preset("gpt2")
    needs = [peak(walk(model, plan("zero2", model, Workload(micro_batch_size=size)), 8, CUDA)) for size in (8, 16, 32)]
    assert needs[2] - needs[1] == pytest.approx(2 * (needs[1] - needs[0]), rel=1e-3)  # the states do not grow


# The states, where the ZeRO paper puts them (arXiv:1910.02054 §3 and §5).


def terms_of_backward(model: ModelShape, tried: Plan, world_size: int) -> dict[tuple[str, str], int]:
    """Bytes of each term at the steady state's peak of the backward pass, by name and place."""
    result = walk(model, tried, world_size, EXACT)
    target = (STEADY_STATE, "backward", result.steps[-1].phases["backward"].peak_bytes)
    return {
        (term.name, term.place): term.size_bytes for term in walk(model, tried, world_size, EXACT, target=target).terms
    }


def bytes_of(terms: dict[tuple[str, str], int], term: Term) -> int:
    return terms.get((term.name, term.place), 0)


@quick
@given(models, worlds, st.sampled_from(["zero1", "zero2", "zero1-ckpt", "zero2-ckpt"]))
def test_stages_1_and_2_partition_the_states_and_keep_the_parameters(
    model: ModelShape, world_size: int, name: str
) -> None:
    padded = padded_elements(model, world_size)
    terms = terms_of_backward(model, plan(name, model), world_size)
    assert bytes_of(terms, states.PARAMETERS) == 2 * padded
    assert bytes_of(terms, states.MASTER) == 4 * padded // world_size
    assert bytes_of(terms, states.OPTIMIZER_STATES) == 2 * 4 * padded // world_size


@quick
@given(models, worlds)
def test_stage_0_keeps_everything(model: ModelShape, world_size: int) -> None:
    psi = model.num_parameters
    terms = terms_of_backward(model, plan("zero0", model), world_size)
    assert bytes_of(terms, states.PARAMETERS) == 2 * psi
    assert bytes_of(terms, states.MASTER) == 4 * psi
    assert bytes_of(terms, states.OPTIMIZER_STATES) == 8 * psi


@quick
@given(models, worlds)
def test_stage_3_partitions_the_parameters_too(model: ModelShape, world_size: int) -> None:
    part = sum(ceil_div(numel, world_size) for numel in parameter_sizes(model))
    terms = terms_of_backward(model, plan("zero3", model), world_size)
    assert bytes_of(terms, states.PARTITIONED_PARAMETERS) == 2 * part
    assert bytes_of(terms, states.GRADIENT_PARTITION) == 2 * part
    assert bytes_of(terms, states.MASTER) == 4 * part
    assert bytes_of(terms, states.OPTIMIZER_STATES) == 8 * part
    assert bytes_of(terms, states.PARAMETERS) == 0


@quick
@given(models, worlds, st.sampled_from(["zero2", "zero3"]))
def test_offload_moves_the_optimizer_states_to_the_host(model: ModelShape, world_size: int, name: str) -> None:
    resident = walk(model, plan(name, model), world_size, EXACT)
    offloaded = walk(model, plan(f"{name}-offload", model), world_size, EXACT)
    assert resident.pinned_bytes == 0 < offloaded.pinned_bytes
    terms = terms_of_backward(model, plan(f"{name}-offload", model), world_size)
    for term in (states.MASTER, states.OPTIMIZER_STATES):
        assert bytes_of(terms, term) == 0
    if name == "zero2":
        part = padded_elements(model, world_size) // world_size
        assert bytes_of(terms, states.HOST_STATES) == 8 * part
        assert bytes_of(terms, states.HOST_GRADIENT_STAGING) >= 2 * max(parameter_sizes(model))
    else:
        part = sum(ceil_div(numel, world_size) for numel in parameter_sizes(model))
        assert bytes_of(terms, states.HOST_STATES) == 8 * part
        assert bytes_of(terms, states.HOST_MASTER_PAGEABLE) == 4 * part
    # What stays between steps shrinks by the states; a buffer or two of the offload comes instead.
    before, after = (result.steps[-1].phases["step"].level_bytes for result in (resident, offloaded))
    assert before - after >= 12 * part - 2 * max(parameter_sizes(model))


def test_offloaded_parameters_leave_the_device() -> None:
    model = preset("gpt2")
    terms = terms_of_backward(model, plan("zero3-offload-param", model, Workload()), 2)
    assert bytes_of(terms, states.PARTITIONED_PARAMETERS) == 0
    assert any(place == PINNED and name.startswith("partitioned parameters") for name, place in terms)


# Ranks.


@pytest.mark.parametrize("name", ["zero1", "zero2", "zero3", "zero2-offload", "zero3-offload", "zero3-offload-param"])
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_more_ranks_need_no_more_of_each(name: str, precision: str) -> None:
    model = preset("gpt2")
    tried = plan(name, model, Workload(precision=precision))
    results = [walk(model, tried, world_size, CUDA) for world_size in (2, 4, 8, 16, 64, 512)]
    padding = 512 * 512 + 2 * 512 * 16 * len(model.parameters)
    for few, many in pairwise(results):
        assert peak(many) <= peak(few) + padding
        assert many.steps[-1].phases["step"].level_bytes <= few.steps[-1].phases["step"].level_bytes + padding
        assert many.host_bytes <= few.host_bytes + 2 * padding


@quick
@given(models, st.sampled_from([2, 3, 4, 7]), st.sampled_from(["zero1", "zero2", "zero3"]))
def test_the_states_between_steps_shrink_with_the_ranks(model: ModelShape, world_size: int, name: str) -> None:
    tried = plan(name, model)
    tried = replace(tried, zero=replace(tried.zero, stage3_param_persistence_threshold=0))
    levels = [walk(model, tried, ranks, EXACT).steps[-1].phases["step"].level_bytes for ranks in (1, world_size)]
    padding = 16 * 2 * world_size * len(model.parameters)
    assert levels[1] <= levels[0] + padding


@pytest.mark.parametrize("world_size", [2, 3, 8, 16])
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("vocab_size", [65, 50257])
def test_the_ranks_that_are_walked_are_the_worst(world_size: int, precision: str, vocab_size: int) -> None:
    model = replace(preset("gpt2"), vocab_size=vocab_size)
    tried = [one for one in plans(model, Workload(precision=precision)) if one.zero.stage in (1, 2)]
    for one in tried:
        every = [peak(walk(model, one, world_size, CUDA, rank=rank)) for rank in range(world_size)]
        assert max(every) <= peak(walk(model, one, world_size, CUDA)) * 1.005, one.name
        worst = every[worst_rank(model, one, world_size, CUDA)]
        assert worst == peak(walk(model, one, world_size, CUDA)), one.name
        assert max(every) <= worst * 1.005, one.name


@pytest.mark.parametrize("name", ["zero0", "zero3"])
def test_where_all_ranks_are_alike_the_first_stands_for_them(name: str) -> None:
    model = shape(num_layers=4)
    assert worst_rank(model, plan(name, model), 4, CUDA) == 0
    assert walk(model, plan(name, model), 4, CUDA, rank=3).steps == walk(model, plan(name, model), 4, CUDA).steps


@pytest.mark.parametrize("name", ["zero1", "zero2", "zero2-offload"])
def test_a_rank_that_holds_padding_alone_is_walked(name: str) -> None:
    model = shape(num_layers=1)
    ranks = model.num_parameters  # two elements for each
    last = walk(model, plan(name, model), ranks, CUDA, rank=ranks - 1)
    assert peak(last) <= peak(walk(model, plan(name, model), ranks, CUDA))


# Gradient accumulation.


@quick
@given(models, workloads, worlds)
def test_accumulation_needs_no_less_and_more_than_three_repeats(
    model: ModelShape, workload: Workload, world_size: int
) -> None:
    def needs(steps: int) -> list[WalkResult]:
        accumulating = replace(workload, gradient_accumulation_steps=steps)
        return [walk(model, tried, world_size, CUDA) for tried in plans(model, accumulating)]

    three = needs(3)
    for once, thrice in zip(needs(1), three, strict=True):
        assert peak(once) <= peak(thrice)
    assert needs(100) == three


@pytest.mark.parametrize(("name", "grows"), [("zero0", True), ("zero1", True), ("zero2", True), ("zero3", False)])
def test_kept_gradients_wait_for_the_boundary(name: str, grows: bool) -> None:
    model = shape(num_layers=4)
    forward = []
    for steps in (1, 2):
        workload = replace(WORKLOAD, gradient_accumulation_steps=steps)
        forward.append(walk(model, plan(name, model, workload), 2, EXACT).steps[-1].phases["forward"].peak_bytes)
    # Stage 3 has a partition for them all the time; stages 0 to 2 make theirs in the first backward.
    assert (forward[1] > forward[0]) == grows
    # Stage 1 has its bucket, here as large as the model, from the first gradient to the boundary.
    waiting = {"zero0": 2 * model.num_parameters, "zero1": 2 * 2 * model.num_parameters, "zero3": 0}
    assert forward[1] - forward[0] == waiting.get(name, forward[1] - forward[0])


# Whole models.


@pytest.mark.parametrize("kernels", [CUDA, CPU])
def test_every_standard_plan_of_gpt2_and_45b_runs(kernels: Kernels) -> None:
    large = ModelShape(
        num_layers=56, hidden_size=8192, num_attention_heads=16, vocab_size=65, max_position_embeddings=128
    )
    for model, length in ((preset("gpt2"), 1024), (large, 128)):
        needs = {
            tried.name: peak(walk(model, tried, 8, kernels)) for tried in plans(model, Workload(sequence_length=length))
        }
        assert len(needs) == 16
        if kernels is CUDA:
            assert needs["zero2"] <= needs["zero1"] < needs["zero0"]
            assert needs["zero3-offload-param"] < needs["zero3-offload"] < needs["zero3"]
            if model is large:  # of a small model activations are the peak, and stage 3 keeps everything gathered
                assert needs["zero3"] < needs["zero2"] < needs["zero1"]
            assert all(needs[f"{name}-ckpt"] <= need for name, need in needs.items() if not name.endswith("-ckpt"))
