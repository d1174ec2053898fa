"""Muon: its groups, its update counted by hand, what each stage keeps of it, and dry runs of four engines."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from itertools import accumulate
from math import prod
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsplan.engine.muon_compiled import CACHE_BYTES, Codes, Timed, compiled_changes, on_device, timed_parts
from dsplan.engine.muon_groups import muon_groups, uses_muon
from dsplan.engine.muon_update import update_changes
from dsplan.errors import InputError
from dsplan.kernels import kernels_of
from dsplan.ledger import DEVICE, MemoryTerm
from dsplan.model import ModelShape, Parameter
from dsplan.partition import FlatGroup
from dsplan.plan import Plan
from dsplan.strategies import standard_plans
from dsplan.verdict.trace import trace
from dsplan.walk import WalkResult, walk
from dsplan.workload import Workload
from dsplan.zero import OffloadOptimizer, ZeroConfig

from ..tapes import EXACT, shape

MODEL = shape()
WORLD = 3
MUON = Workload(sequence_length=8, precision="bf16", optimizer="muon")
CPU_STATES = OffloadOptimizer(device="cpu")
ZEROS = {
    "stage 0": ZeroConfig(stage=0),
    "stage 1": ZeroConfig(stage=1, reduce_bucket_size=2000),
    "stage 2": ZeroConfig(stage=2, reduce_bucket_size=2000),
    "stage 2, one gradient after the other": ZeroConfig(stage=2, contiguous_gradients=False),
    "stage 2, on the CPU": ZeroConfig(stage=2, reduce_bucket_size=2000, offload_optimizer=CPU_STATES),
    "stage 3": ZeroConfig(stage=3, reduce_bucket_size=2000, sub_group_size=500),
    "stage 3, on the CPU": ZeroConfig(stage=3, reduce_bucket_size=2000, offload_optimizer=CPU_STATES),
}


def plan_of(zero: ZeroConfig, workload: Workload = MUON) -> Plan:
    return Plan(name="plan", zero=zero, workload=workload)


# Groups.


def test_matrices_are_muons_but_embeddings_and_heads_by_their_names() -> None:
    assert uses_muon(Parameter("transformer.h.0.attn.c_attn.weight", (48, 16)))
    assert uses_muon(Parameter("transformer.wte.weight", (50, 16)))  # minGPT's is none by its name
    assert uses_muon(Parameter("model.layers.0.mlp.experts.down_proj", (8, 16, 32)))
    assert not uses_muon(Parameter("model.embed_tokens.weight", (50, 16)))
    assert not uses_muon(Parameter("lm_head.weight", (50, 16)))
    assert not uses_muon(Parameter("transformer.h.0.attn.c_attn.bias", (48,)))


def test_muon_sorts_its_matrices_by_shape_where_they_have_one() -> None:
    muons, adams = muon_groups(MODEL)
    shapes = [MODEL.parameters[index].shape for index in muons.order]
    assert shapes == sorted(shapes, reverse=True)
    assert shapes[0] == (64, 16)  # not the largest: the first dimension counts first
    assert sorted((*muons.order, *adams.order)) == list(range(len(MODEL.parameters)))
    assert list(adams.order) == sorted(adams.order)
    under_zero_init, _ = muon_groups(MODEL, under_zero_init=True)
    assert list(under_zero_init.order) == sorted(muons.order)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=12), st.integers(1, 9), st.booleans())
def test_a_group_is_cut_as_deepspeed_cuts_it(numels: list[int], world: int, round_robin: bool) -> None:
    order = tuple(range(100, 100 + len(numels)))
    group = FlatGroup(order, tuple(numels))
    places = [place for first in range(world) for place in range(first, len(numels), world)]
    places = places if round_robin else list(range(len(numels)))
    padded = -(-sum(numels) // (2 * world)) * 2 * world
    ends = list(accumulate(numels[place] for place in places))
    elements = 0
    for rank in range(world):
        part = group.partition(world, rank, round_robin=round_robin)
        begin, end = rank * padded // world, (rank + 1) * padded // world
        overlaps = [
            (order[place], numels[place], min(last, end) - max(last - numels[place], begin))
            for place, last in zip(places, ends, strict=True)
        ]
        owned = [each for each in overlaps if each[2] > 0]
        assert (part.padded, part.size) == (padded, padded // world)
        assert part.owned == tuple((index, numel) for index, numel, _ in owned)
        assert part.slices == tuple(size for _, _, size in owned)
        elements += sum(part.slices)
    assert elements == sum(numels)


# The update.


def peak(changes: Iterable[int]) -> int:
    return max(accumulate(changes))


@pytest.mark.parametrize(("precision", "times"), [("bf16", 5), ("fp16", 10), ("fp32", 8)])
def test_of_a_flat_matrix_whole_copies_are_the_peak(precision: str, times: int) -> None:
    # bf16: isfinite's x == x, |x|, < and their product, 1 + 2 + 1 + 1 bytes; fp16: in fp32, divided, and that in fp16,
    # 4 + 4 + 2; fp32: momentum.lerp and where, 4 + 4, as the update and what where makes of it. One row's squares are
    # single elements.
    numel = 10_000
    changes = update_changes((1, numel), precision, "fp16")
    assert 0 <= peak(changes) - times * numel < 100


def test_of_a_square_matrix_six_squares_are_the_peak() -> None:
    # X, A and the B before, then b * A, c * A and the product of both; then X, A, B and a * X + B @ X.
    changes = update_changes((64, 64), "bf16", "fp16")
    assert peak(changes) == 6 * 2 * 64 * 64 + 1  # and the flag that says whether all was finite


@pytest.mark.parametrize("half", ["fp16", "fp32"])
@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("size", [(24, 24), (24, 7), (7, 24), (5, 7, 24)])
def test_only_the_update_is_left(size: tuple[int, ...], precision: str, half: str) -> None:
    changes = update_changes(size, precision, half)
    rows, columns = size[-2:]
    width = {"bf16": 2, "fp16": 2, "fp32": 4}[precision]
    assert sum(changes) == width * rows * columns * (size[0] if len(size) > 2 else 1)
    transposed = (*size[:-2], columns, rows)
    assert sorted(update_changes(transposed, precision, half)) == sorted(changes)


# The update as it is compiled.

RECORDED = json.loads((Path(__file__).parents[1] / "data" / "muon_requests.json").read_text(encoding="utf-8"))


def test_the_compiled_update_takes_what_a_gpu_was_asked_for() -> None:
    assert {(each["precision"], each["shape"][0] == each["shape"][1]) for each in RECORDED["updates"]} == {
        *(("bf16", True), ("bf16", False)),
        *(("fp32", True), ("fp32", False)),
    }
    for each in RECORDED["updates"]:
        changes = each["changes"]
        partial_sums = changes[0], changes[2], changes[3], changes[5]  # taken, given back; of the norm likewise
        assert (sum(partial_sums), max(map(abs, partial_sums)) < 4096) == (0, True)
        left = (changes[1], changes[4], *changes[6:])
        assert left == compiled_changes(tuple(each["shape"]), each["precision"], "fp16"), each["shape"]


@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
def test_new_code_is_known_and_what_its_timing_takes(precision: str) -> None:
    codes = Codes()
    calls = [each for each in RECORDED["calls"] if each["precision"] == precision]
    assert len(calls) == 14
    for each in calls:
        size = tuple(each["shape"])
        is_new = codes.are_new(size)
        changes = compiled_changes(size, precision, "fp16")
        assert is_new == each["is_new"], size
        assert abs(peak(changes) - each["bytes"]) <= 4096, size
        if is_new:
            parts = {part.place: part for part in timed_parts(size, precision, "fp16", exact=codes.exact)}
            levels = [0, *accumulate(changes)]
            first = max(levels[place] + CACHE_BYTES + sum(part.copies) for place, part in parts.items())
            padded = 12_288 if codes.exact else 4096  # X has rows of a multiple of eight then
            assert abs(first - each["first_bytes"]) <= padded, size
    assert not any(codes.are_new(tuple(each["shape"])) for each in calls)


def test_copies_go_to_the_host_where_the_highest_level_has_no_room_for_them() -> None:
    part = Timed(0, (10, 10, 10, 10))
    assert [len(on_device(part, room)) for room in (0, 9, 10, 35, 40, 99)] == [0, 0, 1, 3, 4, 4]
    assert len(on_device(part._replace(anyway=True), 0)) == 4


def test_a_product_is_tried_with_padded_sides_for_an_exact_shape_only() -> None:
    for size, exact, count in (((50257, 768), True, 3), ((50257, 768), False, 2), ((512, 768), True, 2)):
        assert len(timed_parts(size, "bf16", "fp16", exact=exact)) == count


@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("size", [(24, 24), (24, 7), (7, 24), (5, 7, 24), (5, 24, 24)])
def test_the_compiled_update_leaves_itself_alone(size: tuple[int, ...], precision: str) -> None:
    changes = compiled_changes(size, precision, "fp16")
    width = {"bf16": 2, "fp16": 2, "fp32": 4}[precision]
    assert sum(changes) == width * prod(size)
    assert next(change for change in reversed(changes) if change > 0) == sum(changes)  # the last that is taken
    assert changes == compiled_changes((*size[:-2], size[-1], size[-2]), precision, "fp16")
    assert min(accumulate(changes)) > 0


# What each stage keeps.


def at_the_peak(result: WalkResult, plan: Plan, phase: str, rank: int | None = None) -> dict[str, MemoryTerm]:
    step = result.steps[-1]
    target = (step.name, phase, step.phases[phase].peak_bytes)
    found = walk(MODEL, plan, WORLD, EXACT, rank=rank, target=target)
    return {term.name: term for term in found.terms}


@pytest.mark.parametrize("gas", [1, 2])
@pytest.mark.parametrize("name", ZEROS)
def test_the_terms_of_every_phase_add_up_and_a_trace_follows(name: str, gas: int) -> None:
    plan = plan_of(ZEROS[name], replace(MUON, gradient_accumulation_steps=gas))
    result = walk(MODEL, plan, WORLD, EXACT)
    for phase, memory in result.steps[-1].phases.items():
        terms = at_the_peak(result, plan, phase).values()
        assert sum(term.size_bytes for term in terms if term.place == DEVICE) == memory.peak_bytes
    traced = trace(MODEL, plan, WORLD, kernels_of(None), rank=0, num_steps=3)
    assert len(traced.steps) == 3


@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("rank", range(WORLD))
def test_momentum_is_of_whole_matrices_and_staged_once_more(stage: int, rank: int) -> None:
    plan = plan_of(ZEROS[f"stage {stage}"])
    muons, adams = muon_groups(MODEL)
    mine = muons.partition(WORLD, rank, round_robin=False)
    terms = at_the_peak(walk(MODEL, plan, WORLD, EXACT, rank=rank), plan, "step", rank)
    assert terms["Muon momentum"].size_bytes == 2 * mine.owned_elements
    assert terms["Muon momentum of the step under way"].size_bytes == 2 * mine.owned_elements
    assert terms["optimizer states"].size_bytes == 2 * 4 * adams.padded(WORLD) // WORLD
    masters = sum(4 * group.padded(WORLD) // WORLD for group in (muons, adams))
    assert terms["fp32 master parameters"].size_bytes == masters


def test_stage_3_keeps_momentum_of_its_parts_in_the_communications_dtype() -> None:
    muons, adams = muon_groups(MODEL)
    for communicated, width in (("bf16", 2), ("fp32", 4)):
        plan = plan_of(ZEROS["stage 3"], replace(MUON, communication_data_type=communicated))
        terms = at_the_peak(walk(MODEL, plan, WORLD, EXACT), plan, "forward")
        assert terms["Muon momentum"].size_bytes == width * sum(-(-numel // WORLD) for numel in muons.numels)
        assert terms["optimizer states"].size_bytes == 8 * sum(-(-numel // WORLD) for numel in adams.numels)


def test_a_round_of_stage_3_gathers_updates_and_momentum_apart_and_into_one_tensor_each() -> None:
    # The largest matrix alone in its chunk: padded and gathered by all ranks, of which one has it to give.
    plan = plan_of(replace(ZEROS["stage 3"], reduce_bucket_size=1))
    muons, _ = muon_groups(MODEL)
    largest = max(muons.numels)
    exchanged = at_the_peak(walk(MODEL, plan, WORLD, EXACT), plan, "step")[
        "gradients and momentum of Muon's matrices, exchanged or cut"
    ]
    own, apart, flat = 2, 2 * WORLD, 2 * WORLD  # local_grad and local_momentum; grad_out and momentum_out; newLikeFlat
    assert exchanged.size_bytes == 2 * largest * (own + apart + flat)


def test_on_the_cpu_momentum_is_pageable_and_buffers_of_two_lists_come_with_the_second_step() -> None:
    plan = plan_of(ZEROS["stage 2, on the CPU"])
    muons, adams = muon_groups(MODEL)
    result = walk(MODEL, plan, WORLD, EXACT)
    assert len(result.steps) == 4  # the initialisation, and three steps
    terms = at_the_peak(result, plan, "step")
    assert terms["Muon momentum (host)"].size_bytes == 4 * muons.padded(WORLD) // WORLD
    assert terms["optimizer states (host)"].size_bytes == 8 * adams.padded(WORLD) // WORLD
    rank = muons.padded(WORLD) // WORLD  # of one batch the most that a rank has
    gathering = "buffers in which Muon's matrices are gathered"
    assert terms[gathering].size_bytes == 4 * (WORLD + 1) * (rank + 2 * rank)
    first, second, third = (step.phases["step"].level_bytes for step in result.steps[1:])
    assert second - first == 4 * (WORLD + 1) * 2 * rank
    assert third == second


@pytest.mark.parametrize(
    ("zero", "workload", "what"),
    [
        (ZeroConfig(stage=2), replace(MUON, grad_accum_dtype="fp32"), "data_types.grad_accum_dtype: fp32 with Muon"),
        (
            ZeroConfig(stage=3, offload_optimizer=OffloadOptimizer(device="nvme", nvme_path="/d")),
            MUON,
            "offload_optimizer.device: nvme with Muon",
        ),
        (ZeroConfig(stage=3, offload_optimizer=replace(CPU_STATES, ratio=0.5)), MUON, "offload_optimizer.ratio"),
    ],
)
def test_what_has_no_formula_is_refused_by_name(zero: ZeroConfig, workload: Workload, what: str) -> None:
    with pytest.raises(InputError) as caught:
        walk(MODEL, plan_of(zero, workload), WORLD, EXACT)
    assert what in str(caught.value)


def test_every_strategy_of_muon_has_a_formula_and_stage_3_does_not_scatter() -> None:
    plans = standard_plans(MODEL, MUON)
    assert {plan.zero.stage for plan in plans} == {0, 1, 2, 3}
    for plan in plans:
        walk(MODEL, plan, WORLD, EXACT)
        assert plan.zero.reduce_scatter == (plan.zero.stage != 3)


@pytest.mark.engine
def test_dry_runs_of_four_engines_say_the_same() -> None:
    from tests.dry_runs import dry_runs
    from tests.oracle.compare import difference, specification
    from tests.oracle.grid import Case

    model = ModelShape(
        num_layers=2, hidden_size=96, num_attention_heads=4, vocab_size=700, max_position_embeddings=32, dropout=0.1
    )
    wanted = {
        "twins": (ZeroConfig(stage=0), "fp16", 3),
        "two groups": (ZeroConfig(stage=2, reduce_bucket_size=40_000), "bf16", 4),
        "rounds": (ZeroConfig(stage=3, reduce_bucket_size=40_000), "bf16", 3),
        "on the CPU": (ZeroConfig(stage=3, reduce_bucket_size=40_000, offload_optimizer=CPU_STATES), "bf16", 3),
    }
    cases = {
        name: Case(
            name=name,
            model=model,
            plan=plan_of(zero, replace(MUON, precision=precision, sequence_length=32)),
            world_size=world,
        )
        for name, (zero, precision, world) in wanted.items()
    }
    for name, record in dry_runs({name: specification(case) for name, case in cases.items()}, jobs=1):
        assert isinstance(record, dict), record
        found = difference(cases[name], record)
        assert abs(found.worst.error_percent) < 0.3
        assert abs(found.predicted_pinned - found.found_pinned) < 4096
        assert abs(found.predicted_pageable - found.found_pageable) < 4096
