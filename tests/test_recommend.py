"""Recommend: the first that fits, else the first that may; without a device, the card that most have decides."""

from __future__ import annotations

import pytest

from dsplan.catalogue import accelerator
from dsplan.hardware import Cluster
from dsplan.recommend import recommend

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
