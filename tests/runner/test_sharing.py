"""Several ranks on one device: nodes of as many devices as there are, as far as a rank and NCCL can tell."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from dsplan.measurement import read_measurement
from runner.environment import SHARED_DEVICES, child_environment
from runner.sharing import shared_environment
from runner.spec import RunSpec

DATA = Path(__file__).parents[1] / "data"


def test_no_two_ranks_of_a_host_share_a_device() -> None:
    """NCCL would refuse them."""
    seen = [shared_environment(rank, 2, {}) for rank in range(8)]
    places = Counter((each["NCCL_HOSTID"], each["LOCAL_RANK"]) for each in seen)
    assert set(places.values()) == {1}
    assert Counter(each["LOCAL_RANK"] for each in seen) == {"0": 4, "1": 4}


def test_what_the_user_says_of_the_network_stands() -> None:
    assert shared_environment(0, 1, {"NCCL_SOCKET_IFNAME": "eth0"})["NCCL_SOCKET_IFNAME"] == "eth0"


def test_only_ranks_that_share_are_told() -> None:
    alone = RunSpec(model={}, ds_config={}, sequence_length=8, device="cuda", gpus=2)
    shared = RunSpec(model={}, ds_config={}, sequence_length=8, device="cuda", gpus=4, devices=2)
    assert SHARED_DEVICES not in child_environment(alone, {SHARED_DEVICES: "3"})
    assert child_environment(shared, {})[SHARED_DEVICES] == "2"


@pytest.mark.parametrize("devices", [0, 5])
def test_devices_that_cannot_be_shared_are_refused(devices: int) -> None:
    with pytest.raises(ValueError, match="4 ranks can share 1 to 4"):
        RunSpec(model={}, ds_config={}, sequence_length=8, device="cuda", gpus=4, devices=devices)


@pytest.mark.parametrize("name", ["gpt2-z0-bf16-n4", "gpt2-xl-z2-offload-n4"])
def test_a_rank_allocates_on_a_shared_card_what_it_does_on_its_own(name: str) -> None:
    """Recorded on four H200 and, as four ranks, on two (2026-11-21 and 22): allocated and reserved, to the byte."""
    own = read_measurement(DATA / "measured" / f"{name}.json")
    shared = json.loads((DATA / "shared_records.json").read_text(encoding="utf-8"))[f"{name}-on2"]
    for mine, theirs in zip(own.ranks, shared["ranks"], strict=True):
        for step, other in zip(mine.steps, theirs["steps"], strict=True):
            for label, phase in step.phases.items():
                found = other["phases"][label]
                assert found["peak_bytes"] == phase.peak_bytes
                assert found["level_bytes"] == phase.level_bytes
                assert found["peak_reserved_bytes"] == phase.peak_reserved_bytes
                assert found["device_bytes"] is None  # the driver shows what all ranks of a card hold
