"""Muon's step: its matrices are made orthogonal on the device, each by one rank but at stage 0."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dsplan.catalogue import accelerator
from dsplan.hardware import Cluster
from dsplan.model import ModelShape
from dsplan.plan import Plan
from dsplan.strategies import find_plan, standard_plans
from dsplan.timing.engines import work_of
from dsplan.timing.muon import muon_elements, orthogonalisation
from dsplan.timing.rates import Machine, machine
from dsplan.timing.step_time import step_time
from dsplan.workload import Workload
from tests.timing import profiles

H = 1024
MODEL = ModelShape(num_layers=4, hidden_size=H, num_attention_heads=16)
#: Products of n³ elements, two operations each: attention's projection, and with three or four times the columns.
_WIDE, _SQUARE, _PLAIN = 4, 14, 15


@pytest.fixture
def made_up() -> Machine:
    return machine(accelerator("h200"), profiles.profile())


def plan(name: str, optimizer: str = "muon") -> Plan:
    found = find_plan(standard_plans(MODEL, Workload(micro_batch_size=8)), name)
    return replace(found, workload=replace(found.workload, optimizer=optimizer))


def test_matrices_are_muons_but_for_what_is_named_embedding_or_head() -> None:
    """minGPT's embeddings are called wte and wpe, and are not told apart by DeepSpeed."""
    assert muon_elements(MODEL) == 4 * 12 * H**2 + (50257 + H) * H


def test_products_are_those_of_the_gram_method(made_up: Machine) -> None:
    profile = made_up.profile
    found = orthogonalisation(profile, MODEL, plan("zero0"), 1)
    square = profile.linear("fp16", H, H, H)[0]

    def wide(columns: int) -> float:
        both = profile.linear("fp16", H, columns, H)[0] + profile.linear("fp16", H, H, columns)[0]
        return _WIDE * both / 2 + _SQUARE * square

    products = 4 * (_PLAIN * square + wide(3 * H) + 2 * wide(4 * H)) + wide(50257) + _PLAIN * square
    lines = 4 * sum(_lines(made_up, times * H**2) for times in (1, 3, 4, 4))
    lines += _lines(made_up, 50257 * H) + _lines(made_up, H**2)
    assert found == pytest.approx(products + lines)


def _lines(of: Machine, elements: int) -> float:
    counts = {"isfinite": 1, "add": 4, "scale": 1, "norm": 1, "cast": 2}
    return sum(count * of.profile.elementwise(operator, "bf16", elements) for operator, count in counts.items())


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_ranks_share_the_matrices_where_gradients_are_shared(stage: int, made_up: Machine) -> None:
    one, four = (orthogonalisation(made_up.profile, MODEL, plan(f"zero{stage}"), ranks) for ranks in (1, 4))
    assert four == pytest.approx(one if stage == 0 else 5 / 18 * one)  # of 18 matrices


@pytest.mark.parametrize("name", ["zero0", "zero1", "zero2", "zero3"])
def test_a_step_with_muon_takes_longer_by_what_it_makes_orthogonal(name: str, made_up: Machine) -> None:
    on = Cluster(gpus_per_node=2)
    adam, muon = (work_of(MODEL, plan(name, optimizer), on, made_up) for optimizer in ("adamw", "muon"))
    more = orthogonalisation(made_up.profile, MODEL, plan(name), 2)
    assert muon.update_s - adam.update_s == pytest.approx(more, rel=0.2)
    assert step_time(MODEL, plan(name), on, made_up).seconds > 0


def test_without_reduce_scatter_stage_3_all_reduces(made_up: Machine) -> None:
    found = plan("zero3", "adamw")  # with Muon it is false
    other = replace(found, zero=replace(found.zero, reduce_scatter=False))
    on = Cluster(gpus_per_node=2)
    scattered, whole = (work_of(MODEL, each, on, made_up).reduce_s for each in (found, other))
    assert whole > scattered
