"""How a model is built and cast on the host, trained or not, and which products add a bias at stage 3."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dsplan.catalogue import accelerator
from dsplan.kernels import kernels_of
from dsplan.overhead import LT_WORKSPACE
from dsplan.units import MIB
from dsplan.verdict.trace import trace
from tests.families.compared import predicted
from tests.families.grid import GRID, RANKS, TARGET, Setting
from tests.families.report import measured


def test_host_memory_is_that_of_the_dry_runs() -> None:
    found = measured()
    beyond = [
        (setting.name, kind, ours, theirs)
        for setting in GRID
        for kind in ("pinned", "pageable")
        for ours, theirs in [(getattr(predicted(setting), kind), getattr(found[setting.name], kind))]
        if abs(ours - theirs) > MIB
    ]
    assert beyond == []


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_what_is_not_trained_is_built_and_cast_with_the_rest(stage: int) -> None:
    whole = Setting(family="Llama 3", stage=stage)
    frozen = replace(whole, variant="two layers frozen")
    assert predicted(frozen).pageable == predicted(whole).pageable


def test_a_tied_head_is_made_as_wide_as_the_weight_that_it_gets() -> None:
    """OPT-350M embeds in 512 of its 1,024 elements: 4 bytes of each are there twice until the head is tied."""
    setting = Setting(family="OPT 350M", stage=2)
    model = setting.model
    assert predicted(setting).pageable == 4 * (model.num_parameters + model.vocab_size * 512)


@pytest.mark.parametrize(("family", "adds"), [("GPT-2", True), ("OPT", True), ("GPT-NeoX", False), ("Qwen 2.5", False)])
def test_some_products_add_their_bias_at_stage_3_too(family: str, adds: bool) -> None:
    setting = Setting(family=family, stage=3, sequence_length=64)
    kernels = kernels_of(accelerator(TARGET))
    terms = trace(setting.model, setting.plan, RANKS, kernels, rank=0, num_steps=1).terms
    assert (LT_WORKSPACE in terms) == adds
