"""The search: what it chooses fits, nothing that fits is faster, and its answer is always the same."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import pytest

from dsplan.catalogue import accelerator, preset
from dsplan.errors import InputError
from dsplan.hardware import Cluster
from dsplan.model import ModelShape
from dsplan.plan import Plan
from dsplan.records import mistakes
from dsplan.report.search import front_picture, search_document
from dsplan.search.memory import weigh
from dsplan.search.result import SearchResult
from dsplan.search.search import search
from dsplan.search.space import micro_batches, variations, with_batch
from dsplan.strategies import find_plan, standard_plans
from dsplan.timing.rates import machine
from dsplan.timing.step_time import step_time
from dsplan.workload import Workload
from tests.timing.profiles import profile

GPT2 = preset("gpt2-medium")
A100 = accelerator("a100-40gb")


def cluster(gpus: int = 2, gib: float = 16, host: int | None = 2**39) -> Cluster:
    card = replace(A100, memory_bytes=round(gib * 2**30))
    return Cluster(accelerator=card, gpus_per_node=gpus, host_memory_bytes=host)


def searched(on: Cluster, model: ModelShape = GPT2, **options: object) -> SearchResult:
    plans = [plan for plan in standard_plans(model, Workload()) if "nvme" not in plan.name]
    return search(model, plans, on, profile=profile(), **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def found() -> SearchResult:
    return searched(cluster())


def test_the_winner_fits_and_nothing_that_fits_is_faster(found: SearchResult) -> None:
    winner = found.winner
    assert winner is not None
    assert weigh(GPT2, winner.plan, winner.cluster).fits
    of = machine(A100, profile())
    for plan in standard_plans(GPT2, Workload()):
        for size in (1, 2, 4, 8, 16, 32):
            tried = with_batch(plan, size, 1)
            if weigh(GPT2, tried, found.cluster).fits:
                assert step_time(GPT2, tried, found.cluster, of).tokens_per_s <= winner.tokens_per_s * (1 + 1e-9)


def test_every_strategy_is_the_winner_or_has_a_reason(found: SearchResult) -> None:
    assert found.winner is not None
    names = {plan.name for plan in standard_plans(GPT2, Workload()) if "nvme" not in plan.name}
    assert {one.strategy for one in found.rejected} == names - {found.winner.plan.name}
    assert all(one.why for one in found.rejected)
    fitting = [one for one in found.rejected if one.fits]
    assert all("% slower; mostly" in one.why for one in fitting)


def test_what_does_not_fit_says_by_how_much_when_and_what_of() -> None:
    result = searched(cluster(gpus=1, gib=6), preset("gpt2-large"))
    (why,) = [one for one in result.rejected if one.strategy == "zero0"]
    assert not why.fits
    assert why.why.startswith("the device is short by")
    assert " in step" in why.why
    assert why.terms[0][0] == "optimizer states"
    assert why.terms[0][1] == pytest.approx(8 * preset("gpt2-large").num_parameters, rel=0.01)


def test_the_front_is_a_front(found: SearchResult) -> None:
    assert len(found.front) > 3
    for smaller, larger in pairwise(found.front):
        assert (smaller.device_bytes or 0) < (larger.device_bytes or 0)
        assert smaller.tokens_per_s < larger.tokens_per_s
    assert found.winner is not None
    assert found.front[-1].tokens_per_s == pytest.approx(found.winner.tokens_per_s)


def test_the_answer_is_always_the_same(found: SearchResult) -> None:
    assert search_document(searched(cluster())) == search_document(found)


def test_a_wanted_global_batch_is_made_up_exactly() -> None:
    result = searched(cluster(gpus=2), global_batch_size=48)
    assert result.winner is not None
    for candidate in (result.winner, *result.runners_up, *result.front):
        workload = candidate.plan.workload
        assert workload.micro_batch_size * workload.gradient_accumulation_steps * 2 == 48
    with pytest.raises(InputError, match="48 samples do not divide among 5 ranks; nearest: 45 or 50"):
        searched(cluster(gpus=5), global_batch_size=48)


def test_headroom_takes_the_most_memory_left_and_cost_the_fewest_device_seconds(found: SearchResult) -> None:
    roomy = searched(cluster(), objective="headroom", what_if=False)
    cheap = searched(cluster(gpus=4), objective="cost", what_if=False)
    assert roomy.winner is not None
    assert found.winner is not None
    assert cheap.winner is not None
    assert (roomy.winner.headroom_bytes or 0) > (found.winner.headroom_bytes or 0)
    assert roomy.winner.tokens_per_s < found.winner.tokens_per_s
    for gpus in (1, 2, 4):
        fastest = searched(cluster(gpus=gpus), what_if=False).winner
        assert fastest is not None
        assert cheap.winner.device_seconds_per_token <= fastest.device_seconds_per_token * (1 + 1e-9)


def test_closely_the_winner_is_one_that_a_replay_says_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def pretended(model: ModelShape, plans: list[Plan], *_: object, **__: object) -> SimpleNamespace:
        asked.append(plans[0].workload.micro_batch_size)
        return SimpleNamespace(plans=[SimpleNamespace(verdict="fits" if len(asked) == 12 else "tight")])

    plain = searched(cluster(), what_if=False)
    monkeypatch.setattr("dsplan.search.closely.estimate", pretended)
    result = searched(cluster(), what_if=False, closely=True)
    assert result.winner is not None
    assert plain.winner is not None
    assert len(asked) == 12  # as often as it may for what the bound refuses, then the best that it allows
    assert result.winner.plan.workload.micro_batch_size == asked[-1]
    assert result.winner.tokens_per_s < plain.winner.tokens_per_s


def test_closely_what_only_the_bound_refuses_is_taken_when_it_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    def lives(model: ModelShape, plans: list[Plan], *_: object, **__: object) -> SimpleNamespace:
        return SimpleNamespace(plans=[SimpleNamespace(verdict="fits")])

    plain = searched(cluster(), what_if=False)
    monkeypatch.setattr("dsplan.search.closely.estimate", lives)
    result = searched(cluster(), what_if=False, closely=True)
    assert result.winner is not None
    assert plain.winner is not None
    weight = weigh(GPT2, result.winner.plan, cluster())
    assert not weight.fits
    assert weight.headroom_bytes >= 0
    assert result.winner.headroom_bytes == weight.headroom_bytes
    assert result.winner.tokens_per_s > plain.winner.tokens_per_s


@pytest.mark.parametrize(("worth", "asks"), [(1.0001, True), (100.0, False)])
def test_a_replay_is_asked_where_the_bound_may_cost_much(
    worth: float, asks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def lives(model: ModelShape, plans: list[Plan], *_: object, **__: object) -> SimpleNamespace:
        asked.append(plans[0].workload.micro_batch_size)
        return SimpleNamespace(plans=[SimpleNamespace(verdict="fits")])

    monkeypatch.setattr("dsplan.search.search._WORTH_A_REPLAY", 100.0)
    plain = searched(cluster(), what_if=False).winner
    monkeypatch.setattr("dsplan.search.closely.estimate", lives)
    monkeypatch.setattr("dsplan.search.search._WORTH_A_REPLAY", worth)
    winner = searched(cluster(), what_if=False).winner
    assert winner is not None
    assert plain is not None
    assert bool(asked) == asks == (winner.tokens_per_s > plain.tokens_per_s)
    for objective in ("headroom", "cost"):
        searched(cluster(), objective=objective, what_if=False)
    assert len(asked) <= 2 * asks  # the least memory is nobody's question to a replay


def test_room_that_has_to_stay_free_stays_free() -> None:
    result = searched(cluster(), headroom_bytes=4 * 2**30, what_if=False)
    assert result.winner is not None
    assert weigh(GPT2, result.winner.plan, cluster(gib=12)).fits


def test_nothing_fits_is_an_answer() -> None:
    result = searched(cluster(gpus=1, gib=2, host=2**31), preset("1.7B"))
    assert result.winner is None
    assert result.front == ()
    assert len(result.rejected) == 14
    assert not any(one.fits for one in result.rejected)


def test_more_host_memory_is_said_to_allow_what_it_allows() -> None:
    tight = cluster(gpus=1, gib=8, host=2**33)
    result = searched(tight, preset("gpt2-large"))
    by_change = {other.change: other for other in result.what_if}
    assert "one more GPU in each node" in by_change
    assert any(one.why.startswith("the host is short") for one in result.rejected)
    doubled = searched(replace(tight, host_memory_bytes=2**34), preset("gpt2-large"), what_if=False)
    best = by_change["twice the host memory"].best
    assert (best is None) == (doubled.winner is None)


def test_documents_are_valid_and_the_picture_is_one(found: SearchResult) -> None:
    assert mistakes("search", search_document(found)) == []
    picture = front_picture(found)
    assert picture.startswith("<svg")
    assert picture.count("<circle") > len(found.front)


def test_a_search_needs_a_device_and_a_known_objective() -> None:
    with pytest.raises(InputError, match="name one with --gpu"):
        searched(Cluster())
    with pytest.raises(InputError, match="objective: unknown value 'fastest'"):
        searched(cluster(), objective="fastest")


def test_variations_keep_the_name_and_stay_within_the_model() -> None:
    for name in ("zero0", "zero2", "zero3-ckpt"):
        plan = find_plan(standard_plans(GPT2, Workload()), name)
        made = list(variations(plan, GPT2))
        assert made[0] == plan
        assert len({one.zero for one in made}) == len(made)
        assert all(one.name == name for one in made)
        assert all(one.zero.reduce_bucket_size <= GPT2.num_parameters for one in made[1:])
    assert micro_batches()[:10] == [1, 2, 3, 4, 5, 6, 7, 8, 10, 12]
    assert micro_batches((4, 2)) == [2, 4]
