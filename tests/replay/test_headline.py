"""How far memory goes: the published headline out of the planner, and that the answer is the largest."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dsplan.replay.cases import case
from dsplan.replay.fitting import fit
from dsplan.replay.headline import TECHNIQUES, Reach, _of_depth, reaches


@pytest.fixture(scope="module")
def found() -> dict[str, Reach]:
    return dict(zip(TECHNIQUES, reaches(), strict=True))


def test_the_headline_comes_out_of_the_planner(found: dict[str, Reach]) -> None:
    """1.7B with DDP, 13B with ZeRO-3, 45B with offload on 8 x 40 GB and 1 TB; one layer is 113M or 805M."""
    able = {name: reach.can_run.num_parameters for name, reach in found.items() if reach.can_run is not None}
    assert able["size-ddp"] == 1_700_090_880  # to the layer
    assert 12e9 < able["size-zero3"] < 15e9
    assert able["size-zero3-offload"] == 48_326_901_760  # to the layer


def test_what_was_published_as_running_can_run(found: dict[str, Reach]) -> None:
    for reach in found.values():
        assert reach.can_run is not None
        assert reach.can_run.num_parameters >= reach.published
        assert reach.fits is not None
        assert reach.fits.num_parameters <= reach.can_run.num_parameters


@pytest.mark.parametrize("name", ["size-ddp", "size-zero3"])
def test_one_layer_more_cannot(name: str, found: dict[str, Reach]) -> None:
    one, reach = case(name), found[name]
    assert reach.can_run is not None
    layers = reach.can_run.num_layers
    assert fit(_of_depth(one, layers), one.plan, one.cluster).can_run
    more = fit(_of_depth(one, layers + 1), one.plan, one.cluster)
    assert not more.can_run
    assert more.reason == reach.stopped_by


def test_stage_2_may_flatten_the_model_on_the_host() -> None:
    """Two copies of 14.5B parameters are more than a card; DeepSpeed then makes the second one on the host."""
    one = case("size-zero2-offload")
    assert one.model.shape is not None
    assert fit(one.model.shape, one.plan, one.cluster).can_run
    half = replace(one.cluster, host_memory_bytes=400 * 2**30)
    assert "the host is short" in fit(one.model.shape, one.plan, half).reason
