"""Recommend: the first that fits, else the first that may; without a device, the card that most have decides."""

from __future__ import annotations

import pytest

from dsplan.catalogue import accelerator
from dsplan.hardware import Cluster
from dsplan.model import ModelShape
from dsplan.recommend import lacks_drive, recommend, whole_context
from dsplan.workload import Workload
from dsplan.zero import OffloadOptimizer, OffloadParam, ZeroConfig

H200 = Cluster(accelerator=accelerator("h200"))
NONE = Cluster()
NO, TIGHT, FITS = "does not fit", "tight", "fits"


def rows(*verdicts: str) -> list[tuple[str, str, tuple[str, ...]]]:
    return [(f"plan{index}", verdict, ()) for index, verdict in enumerate(verdicts)]


@pytest.mark.parametrize(
    ("verdicts", "name", "reason"),
    [
        ((FITS, FITS), "plan0", "the fastest that fits"),
        ((NO, TIGHT, FITS), "plan2", "the fastest that fits; plan0, plan1 would be faster and do not"),
        (
            (NO, TIGHT, TIGHT),
            "plan1",
            "the fastest that may fit; plan0 would be faster and does not; nothing fits with room for fragmentation",
        ),
        ((TIGHT,), "plan0", "the fastest that may fit; nothing fits with room for fragmentation"),
    ],
)
def test_the_first_that_fits_is_taken(verdicts: tuple[str, ...], name: str, reason: str) -> None:
    assert recommend(rows(*verdicts), H200) == (name, reason)


@pytest.mark.parametrize("verdicts", [(), (NO,), (NO, NO)])
def test_nothing_is_recommended_where_nothing_fits(verdicts: tuple[str, ...]) -> None:
    name, reason = recommend(rows(*verdicts), H200)
    assert name is None
    assert "no strategy fits" in reason


def test_a_drive_that_nobody_named_comes_last() -> None:
    three = [("swapping", FITS, ("t4",)), ("host", FITS, ("b200",)), ("slow", FITS, ())]
    assert recommend(three, H200, lacks_drive=["swapping"]) == ("host", "the fastest that fits")
    assert recommend(three, H200)[0] == "swapping"
    assert recommend(three, NONE, lacks_drive=["swapping"])[0] == "host"
    tight = [("swapping", FITS, ()), ("host", TIGHT, ())]
    assert recommend(tight, H200, lacks_drive=["swapping"])[0] == "host"
    alone = [("swapping", FITS, ("t4",)), ("host", NO, ())]
    for cluster in (H200, NONE):
        assert recommend(alone, cluster, lacks_drive=["swapping"])[0] == "swapping"


def test_a_folder_makes_a_drive() -> None:
    assert not lacks_drive(ZeroConfig(stage=3))
    assert lacks_drive(ZeroConfig(stage=3, offload_optimizer=OffloadOptimizer(device="nvme")))
    assert lacks_drive(ZeroConfig(stage=3, offload_param=OffloadParam(device="nvme")))
    assert not lacks_drive(ZeroConfig(stage=3, offload_param=OffloadParam(device="nvme", nvme_path="/mnt")))


def test_samples_as_long_as_the_model_takes_are_said_to_be() -> None:
    model = ModelShape(num_layers=1, hidden_size=8, num_attention_heads=1, max_position_embeddings=131_072)
    assert "all the 131,072 tokens" in whole_context(model, Workload(sequence_length=131_072))
    assert whole_context(model, Workload(sequence_length=4096)) == ""


def test_without_a_device_the_plan_has_to_fit_the_card_that_most_have() -> None:
    rows = [
        ("fast", "unknown", ("b200",)),
        ("slower", "unknown", ("a100-80gb", "h200", "b200")),
        ("slowest", "unknown", ("t4", "a100-80gb", "h200", "b200")),
    ]
    name, reason = recommend(rows, NONE)
    assert name == "slower"
    assert "A100 80GB" in reason
    assert "--gpu" in reason


def test_without_a_device_a_larger_card_is_better_than_none() -> None:
    name, reason = recommend([("fast", "unknown", ()), ("slower", "unknown", ("h200", "b200"))], NONE)
    assert name == "slower"
    assert "H200" in reason


def test_without_a_device_and_without_a_card_there_is_no_answer() -> None:
    assert recommend([("fast", "unknown", ())], NONE)[0] is None
    assert recommend([], NONE)[0] is None
