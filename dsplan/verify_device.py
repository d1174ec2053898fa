"""Which device a verification runs on, or stands for, and what the prediction takes it for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dsplan import detect
from dsplan.catalogue import accelerator, accelerators, find_accelerator
from dsplan.errors import NoDeviceError
from dsplan.hardware import Accelerator
from dsplan.measurement import DeviceRecord
from dsplan.recommend import REFERENCE_CARD

FAKE = "fake"
DEVICES = ("auto", "cuda", "hpu", "cpu", FAKE)
CPU = Accelerator(name="cpu", label="CPU", kind="cpu", memory_bytes=None)

#: What is there where a driver is loaded although its tool is not installed (ROCm devices are cuda to torch).
_DRIVER_FILES = {"cuda": ("/dev/nvidiactl", "/dev/kfd"), "hpu": ("/dev/accel/accel0", "/dev/hl0")}
_TOOLS = {"cuda": "nvidia-smi", "hpu": "hl-smi"}
#: Whose workspace and kernels a device has that no catalogue knows.
_TYPICAL = "a100-80gb"
_TYPICAL_GAUDI = "gaudi2"
#: Ranks on a CPU: with one, ZeRO has nothing to divide.
_CPU_RANKS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class ChosenDevice:
    """The device of a run.

    Attributes:
        kind: ``cuda``, ``hpu``, ``cpu``, or ``fake`` for a dry run.
        reason: why it was chosen, for people.
        accelerator: what the prediction takes it for; None when only the run can tell. Of a dry run, the
            device that it stands for.
        count: how many of them there are; None when that is not known, or is no limit.
    """

    kind: str
    reason: str
    accelerator: Accelerator | None
    count: int | None = None

    @property
    def is_dry(self) -> bool:
        """Whether nothing is run on a device: the engine works on fake tensors."""
        return self.kind == FAKE

    @property
    def computes_on_cpu(self) -> bool:
        """Whether the operators are the CPU's, or a dry run pretends that they are."""
        return self.kind == "cpu" or (self.accelerator is not None and self.accelerator.kind == "cpu")

    @property
    def default_ranks(self) -> int:
        """One for each device; of CPU ranks two; in a dry run one, as for an estimate."""
        return _CPU_RANKS if self.kind == "cpu" else self.count or 1

    def require(self, ranks: int) -> None:
        """Raise NoDeviceError when there are fewer devices than ``ranks``."""
        if self.count is not None and ranks > self.count:
            raise NoDeviceError(
                f"--gpus: {ranks} were asked for, but this machine has {self.count} visible; "
                f"ask for fewer, run on the CPU with --device cpu, or make a dry run with --device {FAKE}"
            )


def choose_device(wanted: str) -> ChosenDevice:
    """The device for ``wanted``, one of :data:`DEVICES`; ``auto`` takes cuda, else hpu, else the dry run.

    Raises:
        NoDeviceError: this machine has none of the kind that was asked for.
    """
    if wanted == "cpu":
        return ChosenDevice(kind="cpu", reason="asked for", accelerator=CPU)
    if wanted == FAKE:
        return dry_run_device(None, "asked for")
    local = detect.local_accelerator()
    found = None if local is None else "hpu" if local.kind == "hpu" else "cuda"
    if found is not None and wanted in ("auto", found):
        reason = "asked for" if wanted != "auto" else f"{_TOOLS[found]} shows one"
        return ChosenDevice(kind=found, reason=reason, accelerator=local, count=detect.local_gpu_count())
    if wanted == "auto":
        target = accelerator(REFERENCE_CARD)
        return dry_run_device(
            target,
            f"neither nvidia-smi nor hl-smi shows a device: a dry run, standing for an {target.label}; "
            "--gpu names another, --device cpu takes real steps on the CPU",
        )
    if not _exist(_DRIVER_FILES[wanted]):
        raise NoDeviceError(
            f"--device {wanted}: this machine shows none ({_TOOLS[wanted]} reports no device, and no driver is "
            f"loaded); use --device cpu or --device {FAKE}, or run on a machine that has one"
        )
    typical = accelerator(_TYPICAL_GAUDI) if wanted == "hpu" else None
    return ChosenDevice(kind=wanted, reason="asked for", accelerator=typical)


def dry_run_device(target: Accelerator | None, reason: str) -> ChosenDevice:
    """A dry run for ``target``; None: for this machine's own device, or the reference card where it has none."""
    if target is None:
        target = detect.local_accelerator() or accelerator(REFERENCE_CARD)
    return ChosenDevice(kind=FAKE, reason=reason, accelerator=target)


def named_target(name: str) -> Accelerator:
    """The device that a dry run stands for by its name: of the catalogue, or ``cpu``.

    Raises:
        InputError: no such accelerator, with the nearest names.
    """
    return CPU if name.strip().casefold() == CPU.name else accelerator(name)


def measured_accelerator(device: DeviceRecord) -> Accelerator:
    """What the prediction takes a measured device for: the catalogue's entry of that name, or a typical one.

    A dry run's record names the device that it stood for by its label.
    """
    if device.kind == "cpu" or (device.kind == FAKE and device.name == CPU.label):
        return CPU
    labelled = next((entry for entry in accelerators() if entry.label == device.name), None)
    known = labelled or find_accelerator(device.name)
    if device.kind == "hpu":  # "Gaudi" is all that DeepSpeed's interface says: the memory tells them apart
        return labelled or _nearest_gaudi(device.memory_bytes)
    if known is not None:
        return known
    typical = accelerator(_TYPICAL)
    return replace(
        typical,
        name="measured",
        label=device.name,
        memory_bytes=device.memory_bytes,
        sources=("memory_bytes: the run", f"all else: {typical.label}"),
    )


def _nearest_gaudi(memory_bytes: int) -> Accelerator:
    gaudis = [entry for entry in accelerators() if entry.kind == "hpu"]
    return min(gaudis, key=lambda entry: abs((entry.memory_bytes or 0) - memory_bytes))


def _exist(paths: Sequence[str]) -> bool:
    return any(Path(path).exists() for path in paths)
