"""dsplan.verify_device: what a measured device is taken for, and which one is chosen."""

from __future__ import annotations

import pytest

from dsplan import detect
from dsplan.catalogue import accelerator, accelerators
from dsplan.errors import InputError, NoDeviceError
from dsplan.measurement import DeviceRecord
from dsplan.units import GIB
from dsplan.verify_device import CPU, choose_device, dry_run_device, measured_accelerator, named_target


@pytest.fixture(autouse=True)
def no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detect, "local_accelerator", lambda: None)
    monkeypatch.setattr(detect, "local_gpu_count", lambda: 0)
    monkeypatch.setattr("dsplan.verify_device._DRIVER_FILES", {"cuda": (), "hpu": ()})


def record(kind: str, name: str, memory_bytes: int = 80 * GIB) -> DeviceRecord:
    return DeviceRecord(kind=kind, name=name, memory_bytes=memory_bytes)


@pytest.mark.parametrize("entry", [*accelerators(), CPU], ids=lambda entry: entry.name)
def test_a_dry_run_s_record_names_its_target(entry: object) -> None:
    assert isinstance(entry, type(CPU))
    assert measured_accelerator(record("fake", entry.label)) == entry


@pytest.mark.parametrize(
    ("device", "name"),
    [
        (record("cuda", "NVIDIA H200"), "h200"),
        (record("cpu", "whatever"), "cpu"),
        (record("cuda", "NVIDIA X9000"), "measured"),
        (record("fake", "NVIDIA X9000"), "measured"),
        # DeepSpeed's interface calls every generation Gaudi.
        (record("hpu", "Gaudi", 96 * GIB), "gaudi2"),
        (record("hpu", "Gaudi", 128 * GIB), "gaudi3"),
        (record("hpu", "Gaudi", 32 * GIB), "gaudi"),
    ],
)
def test_what_a_measured_device_is_taken_for(device: DeviceRecord, name: str) -> None:
    assert measured_accelerator(device).name == name


def test_an_unknown_device_keeps_its_memory() -> None:
    found = measured_accelerator(record("cuda", "NVIDIA X9000", 100 * GIB))
    assert (found.label, found.memory_bytes) == ("NVIDIA X9000", 100 * GIB)


def test_the_choice_without_a_device() -> None:
    found = choose_device("auto")
    assert (found.kind, found.accelerator, found.count, found.default_ranks) == (
        "fake",
        accelerator("a100-80gb"),
        None,
        1,
    )
    found.require(4096)  # any number
    assert choose_device("fake").is_dry
    assert choose_device("cpu").default_ranks == 2
    assert not choose_device("cpu").is_dry
    with pytest.raises(NoDeviceError, match="use --device cpu or --device fake"):
        choose_device("hpu")


def test_the_choice_with_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detect, "local_accelerator", lambda: accelerator("gaudi3"))
    monkeypatch.setattr(detect, "local_gpu_count", lambda: 8)
    assert (choose_device("auto").kind, choose_device("auto").default_ranks) == ("hpu", 8)
    dry = choose_device("fake")
    assert (dry.accelerator, dry.default_ranks) == (accelerator("gaudi3"), 1)


def test_what_a_dry_run_can_stand_for() -> None:
    assert named_target(" CPU") is CPU
    assert dry_run_device(named_target("cpu"), "asked for").computes_on_cpu
    assert not dry_run_device(named_target("h200"), "asked for").computes_on_cpu
    with pytest.raises(InputError, match="unknown name 'nothing'"):
        named_target("nothing")
