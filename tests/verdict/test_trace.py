"""The trace: the walk's requests, one by one."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from dsplan.engine import candidate_ranks
from dsplan.verdict.operations import EMPTY_CACHE, RELEASE, Trace
from dsplan.verdict.pressure import replay
from dsplan.verdict.recorder import GATHER, REDUCE
from dsplan.verdict.requests import Numbered, Request
from dsplan.verdict.trace import trace
from dsplan.walk import walk
from tests.verdict.plans import KERNELS, MODEL, PLANS, traced


def levels(trace: Trace) -> list[int]:
    """Live bytes after each operation."""
    level, found = 0, []
    for size, other in trace.operations:
        level += size if size >= 0 else -trace.operations[other][0] if size == RELEASE else 0
        found.append(level)
    return found


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("name", PLANS)
def test_every_release_returns_what_is_live_and_no_other(name: str, ranks: int) -> None:
    trace = traced(name, ranks=ranks)
    live: set[int] = set()
    for number, (size, other) in enumerate(trace.operations):
        if size >= 0:
            live.add(number)
        elif size == RELEASE:
            live.remove(other)
    assert live  # parameters stay
    assert len(trace.operations) == len(trace.terms)


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("name", PLANS)
def test_its_peak_is_the_walk_s(name: str, ranks: int) -> None:
    """Both by requests rounded to 512 bytes; steps apart, of which the trace has more."""
    kernels = replace(KERNELS, whole_segments=False)
    peak = 0
    for rank in candidate_ranks(MODEL, PLANS[name], ranks):
        walked = walk(MODEL, PLANS[name], ranks, kernels, rank=rank)
        peak = max(step.peak_bytes for step in walked.steps)
        assert max(levels(traced(name, ranks=ranks, rank=rank, num_steps=5))) == pytest.approx(peak, abs=4096)
    assert peak


@pytest.mark.parametrize("name", ["zero1", "zero2-ckpt", "zero3", "zero3-offload-param"])
def test_steps_repeat_themselves(name: str) -> None:
    """What lives after one of the later steps lives after the next."""
    trace = traced(name, num_steps=6)
    found = levels(trace)
    ends = [
        moment.operation - 1 for moment in trace.moments if moment.phase == "forward" and moment.moment == "embedding"
    ]
    assert len({found[end] for end in ends[3:]}) == 1


def test_stage_3_has_streams_of_its_own_only_where_communication_overlaps() -> None:
    plan = PLANS["zero3"]
    for overlap, streams in ((True, {0, GATHER, REDUCE}), (False, {0})):
        zero = replace(plan.zero, overlap_comm=overlap)
        trace = traced("", plan=replace(plan, zero=zero))
        assert {stream for size, stream in trace.operations if size >= 0} == streams


@pytest.mark.parametrize(("name", "times"), [("zero0", 0), ("zero1", 1), ("zero2", 1), ("zero3", 1)])
def test_the_cache_is_emptied_where_deepspeed_does(name: str, times: int) -> None:
    trace = traced(name)
    assert sum(size == EMPTY_CACHE for size, _ in trace.operations) == times
    emptied = [number for number, (size, _) in enumerate(trace.operations) if size == EMPTY_CACHE]
    assert all(trace.moment_of(number).step == "init" for number in emptied)


def test_moments_have_names() -> None:
    trace = traced("zero2")
    assert trace.moment_of(0).phase == "init"
    last = trace.moment_of(len(trace.operations) - 1)
    assert (last.step, last.phase) == ("steady state", "step")


def test_a_mask_follows_the_attention_that_it_belongs_to() -> None:
    trace = traced("zero0", ranks=1)
    names = [term.name for term in trace.terms[:40] if term is not None]
    masks = [index for index, name in enumerate(names) if name == "causal mask buffers"]
    assert masks == [8, 21, 34]  # two embeddings, ln_1 and attn: 2 + 2 + 4; then twelve parameters and a mask a block


def test_a_request_knows_its_release() -> None:
    kernels = Numbered.of(KERNELS)
    first, second = kernels.rounded(1000), kernels.rounded(1000)
    assert isinstance(first, Request)
    assert isinstance(second, Request)
    assert (int(first), int(-first)) == (1024, -1024)
    assert (-first).number == first.number != second.number


def test_which_of_two_equal_tensors_goes_is_known() -> None:
    """Replayed by size alone, last in first out, the same trace needs another amount."""
    trace = traced("zero2-ckpt", ranks=1)
    held: dict[int, list[int]] = {}
    by_size = []
    for number, (size, other) in enumerate(trace.operations):
        if size >= 0:
            held.setdefault(size, []).append(number)
        by_size.append((RELEASE, held[trace.operations[other][0]].pop()) if size == RELEASE else (size, other))
    assert by_size != trace.operations
    assert replay(Trace(by_size, trace.terms, trace.moments)).allocated_bytes == pytest.approx(
        replay(trace).allocated_bytes, rel=0.01
    )


def test_dropout_takes_its_mask_before_its_output() -> None:
    """aten/src/ATen/native/cuda/Dropout.cu; the tape has them in the order in which they are returned."""
    trace = traced("zero0", ranks=1)
    names = [term.name if term is not None else "" for term in trace.terms]
    at = names.index("attention dropout mask")
    mask, output = trace.operations[at][0], trace.operations[at + 1][0]
    assert (names[at + 1], output) == ("attention probabilities", 2 * mask)
    assert sum(other == at + 1 for size, other in trace.operations if size == RELEASE) == 1


def test_skipped_steps_make_no_states_and_the_first_that_is_not_makes_all() -> None:
    plan = PLANS["zero3"]
    fp16 = replace(plan, workload=replace(plan.workload, precision="fp16"))
    usual = trace(MODEL, fp16, 2, KERNELS, rank=0)
    late = trace(MODEL, fp16, 2, KERNELS, rank=0, skipped=2)

    def made_in(found: Trace) -> Counter[int]:
        """In which steps, from 0 on, how many states are made."""
        numbers = [n for n, term in enumerate(found.terms) if term is not None and term.name == "optimizer states"]
        return Counter(sum(start <= number for start in found.steps) - 1 for number in numbers)

    assert set(made_in(usual)) == {0}
    assert set(made_in(late)) == {2}
    assert made_in(usual)[0] == made_in(late)[2]
    assert levels(usual)[-1] == levels(late)[-1]
