"""runner.device.hpu against a stand-in for DeepSpeed's HPU accelerator; no Gaudi card has confirmed it yet."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("deepspeed")

import torch

from dsplan.errors import NoDeviceError
from runner.device import open_device
from runner.spec import RunSpec

GAUDI = RunSpec(model={}, ds_config={}, sequence_length=1, device="hpu")


class Habana:
    """What deepspeed/accelerator/hpu_accelerator.py offers of habana's memory interface."""

    def __init__(self, name: str = "hpu", available: bool = True) -> None:
        self._name = name
        self._available = available
        self.allocated = 0
        self.peak = 0
        self.calls: list[str] = []

    def device_name(self) -> str:
        return self._name

    def is_available(self) -> bool:
        return self._available

    def communication_backend_name(self) -> str:
        return "hccl"

    def is_bf16_supported(self) -> bool:
        return True

    def synchronize(self) -> None:
        self.calls.append("synchronize")

    def total_memory(self) -> int:
        return 96 * 1024**3

    def memory_allocated(self) -> int:
        return self.allocated

    def max_memory_allocated(self) -> int:
        return self.peak

    # Habana has no caching allocator: both are the same there.
    def memory_reserved(self) -> int:
        return self.allocated

    def max_memory_reserved(self) -> int:
        return self.peak

    def reset_peak_memory_stats(self) -> None:
        self.calls.append("reset")
        self.peak = self.allocated

    def take(self, size: int) -> None:
        self.allocated += size
        self.peak = max(self.peak, self.allocated)


@pytest.fixture
def habana(monkeypatch: pytest.MonkeyPatch) -> Habana:
    accelerator = Habana()
    install(monkeypatch, accelerator)
    return accelerator


def install(monkeypatch: pytest.MonkeyPatch, accelerator: Habana) -> None:
    monkeypatch.setattr("deepspeed.accelerator.get_accelerator", lambda: accelerator)
    monkeypatch.setattr("runner.device.hpu.get_accelerator", lambda: accelerator)


def test_it_says_what_it_is(habana: Habana) -> None:
    device = open_device(GAUDI)
    info = device.info()
    assert (info.kind, info.memory_bytes) == ("hpu", 96 * 1024**3)
    assert device.backend == habana.communication_backend_name() == "hccl"
    assert device.torch_device() == torch.device("hpu")
    assert isinstance(device.versions(), dict)


def test_levels_and_peaks_are_habana_s(habana: Habana) -> None:
    device = open_device(GAUDI)
    habana.take(100)
    habana.take(-60)
    assert device.memory().allocated_bytes == 40
    assert (device.peak().allocated_bytes, device.peak().reserved_bytes) == (100, 100)
    device.reset_peak()
    assert device.peak().allocated_bytes == 40
    # The driver shows the whole card as used, and pinned memory cannot be asked for.
    assert device.memory().driver_bytes is None
    assert device.pinned_bytes() is None


def test_a_probe_measures_a_phase_on_it(habana: Habana) -> None:
    from runner.probe import Probe

    probe = Probe(open_device(GAUDI))
    with probe.phase("forward"):
        habana.take(500)
        habana.take(-200)
    phases = probe.take()
    assert (phases["forward"]["level_before_bytes"], phases["forward"]["level_bytes"]) == (0, 300)
    assert (phases["forward"]["peak_bytes"], phases["forward"]["device_bytes"]) == (500, None)
    assert habana.calls == ["synchronize", "reset", "synchronize"]
    assert probe.host()["pinned_bytes"] is None


@pytest.mark.parametrize("accelerator", [Habana(name="cpu"), Habana(available=False)])
def test_no_gaudi_is_said_so(monkeypatch: pytest.MonkeyPatch, accelerator: Habana) -> None:
    install(monkeypatch, accelerator)
    with pytest.raises(NoDeviceError, match="DeepSpeed finds no Gaudi here"):
        open_device(GAUDI)


def test_a_verification_on_gaudi_is_planned_in_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    from dsplan.cli.options import ModelOptions, WorkloadOptions
    from dsplan.cli.verify_input import read_job
    from dsplan.cli.verify_options import DryRunOptions, RunOptions
    from dsplan.detect import Device

    monkeypatch.setattr("dsplan.detect._devices", lambda: [Device("hpu", "HL-225", 96 * 1024**3)] * 8)
    job = read_job(ModelOptions(), WorkloadOptions(), RunOptions(device="hpu", gpus=2), DryRunOptions())
    specification: dict[str, Any] = job.specification()
    assert (specification["device"], specification["gpus"]) == ("hpu", 2)
    assert specification["ds_config"]["bf16"] == {"enabled": True}
    assert job.device.accelerator is not None
    assert job.device.accelerator.name == "gaudi2"
