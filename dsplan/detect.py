"""What this machine offers, asked of the drivers' tools: torch is not needed to plan.

``nvidia-smi`` and ``hl-smi`` report MiB (they write "MB" or "MiB", or nothing with ``nounits``).
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from dsplan.catalogue import accelerators, find_accelerator, normalise
from dsplan.hardware import Accelerator, Drive, HostLimits
from dsplan.heap_threshold import fixed_threshold
from dsplan.units import MIB

TIMEOUT_SECONDS = 5.0
MEMINFO = Path("/proc/meminfo")
STATUS = Path("/proc/self/status")
SHARED_MEMORY = Path("/dev/shm")
#: Where DeepSpeed is told how to pin host memory (deepspeed/utils/pin_memory.py).
PINNING = "DS_PIN_MEMORY_BACKEND"
#: capabilities(7): a process that has CAP_IPC_LOCK may lock what it likes.
_CAP_IPC_LOCK = 14

#: A card whose reported memory is further than this from the catalogue's is another variant of it.
_SAME_MEMORY = 0.05
#: nvidia-smi tells whole MiB: what is left of a card agrees to this.
_SAME_USABLE = 4 * MIB


@dataclass(frozen=True, slots=True)
class Device:
    """One device as its driver's tool reports it; ``reserved_bytes`` is the driver's own share, None: not known."""

    kind: str
    name: str
    memory_bytes: int
    compute_capability: str | None = None
    reserved_bytes: int | None = None


def local_accelerator() -> Accelerator | None:
    """The accelerator of this machine, from the catalogue when its name is known; None without one.

    Of different devices it is the one with the least memory: every rank needs the same, so that one
    runs out first.
    """
    devices = _devices()
    if not devices:
        return None
    return _accelerator(min(devices, key=lambda device: device.memory_bytes))


def local_gpu_count() -> int:
    """Accelerators that a program started here would see; 0 without any."""
    return len(_devices())


def host_memory_bytes() -> int | None:
    """Total memory of this host (``MemTotal`` of /proc/meminfo); None where that does not exist."""
    try:
        lines = MEMINFO.read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    for line in lines:
        field, _, value = line.partition(":")
        words = value.split()
        # /proc/meminfo writes "kB" and means KiB.
        if field == "MemTotal" and words and words[0].isdigit():
            return int(words[0]) * 1024
    return None


def host_limits(folders: Iterable[str] = ()) -> HostLimits:
    """What this machine lets a process have beside its memory; ``folders`` are those that will be swapped to."""
    return HostLimits(
        locked_bytes=_locked_bytes(),
        shared_bytes=_shared_bytes(),
        locks_pinned_memory=os.environ.get(PINNING, "").strip().casefold() == "native",
        drives=tuple(drive for folder in dict.fromkeys(folders) if (drive := _drive(folder)) is not None),
        mmap_threshold_bytes=fixed_threshold(),
    )


def _locked_bytes() -> int | None:
    """The soft limit of RLIMIT_MEMLOCK; None where it is infinite, or does not bind this process."""
    try:
        import resource
    except ImportError:  # not a Unix
        return None
    limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if limit == resource.RLIM_INFINITY or _may_lock():
        return None
    return limit


def _may_lock() -> bool:
    with suppress(OSError, UnicodeDecodeError, ValueError):
        for line in STATUS.read_text(encoding="ascii").splitlines():
            field, _, value = line.partition(":")
            if field == "CapEff":
                return bool(int(value, 16) >> _CAP_IPC_LOCK & 1)
    return False


def _shared_bytes() -> int | None:
    try:
        found = os.statvfs(SHARED_MEMORY)
    except (OSError, AttributeError):
        return None
    return found.f_frsize * found.f_blocks


def _drive(folder: str) -> Drive | None:
    """The file system that ``folder`` is on, or will be: that of the nearest folder above it that exists."""
    path = Path(folder)
    for place in (path, *path.absolute().parents):
        with suppress(OSError, AttributeError):
            found = os.statvfs(place)
            return Drive(folder=folder, file_system=place.stat().st_dev, free_bytes=found.f_frsize * found.f_bavail)
    return None


def _devices() -> list[Device]:
    return _nvidia() or _gaudi()


def _nvidia() -> list[Device]:
    form = "--format=csv,noheader,nounits"
    # Drivers before 510 know neither of the last two, and a query with an unknown field is refused as a whole.
    for fields in (("compute_cap", "memory.reserved"), ("compute_cap",), ()):
        query = ",".join(("name", "memory.total", *fields))
        rows = _rows(["nvidia-smi", f"--query-gpu={query}", form], 2 + len(fields))
        if rows:
            break
    devices = []
    for name, total, *rest in rows:
        if memory := _mib(total):
            capability, reserved = (*rest, None, None)[:2]
            devices.append(Device("cuda", name, memory, capability, None if reserved is None else _mib(reserved)))
    return _visible(devices)


def _gaudi() -> list[Device]:
    rows = _rows(["hl-smi", "-Q", "name,memory.total", "-f", "csv,noheader"], 2)
    return [Device("hpu", row[0], memory) for row in rows if (memory := _mib(row[1]))]


def _rows(command: list[str], columns: int) -> list[list[str]]:
    """The comma-separated rows that a tool prints; none when it is absent, fails or hangs."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=TIMEOUT_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    if done.returncode != 0:
        return []
    rows = [[cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines()]
    return [row for row in rows if len(row) == columns]


def _mib(text: str) -> int | None:
    """Bytes of "143771" or "98304 MiB"; None for "[N/A]"."""
    words = text.split()
    return int(words[0]) * MIB if words and words[0].isdigit() else None


def _visible(devices: list[Device]) -> list[Device]:
    """Those that CUDA_VISIBLE_DEVICES leaves: CUDA stops at the first entry that is no device."""
    setting = os.environ.get("CUDA_VISIBLE_DEVICES")
    if setting is None:
        return devices
    seen: list[Device] = []
    for position, entry in enumerate(text.strip() for text in setting.split(",")):
        if entry.startswith(("GPU-", "MIG-")):
            # An identifier does not say which device it is; all are alike on any sane machine.
            seen += devices[position : position + 1]
        elif entry.isdigit() and int(entry) < len(devices):
            seen.append(devices[int(entry)])
        else:
            break
    return seen


def _accelerator(device: Device) -> Accelerator:
    known = find_accelerator(device.name)
    if known is not None and known.memory_bytes is not None:
        if abs(device.memory_bytes / known.memory_bytes - 1) <= _SAME_MEMORY:
            return _as_reported(known, device)
        return _like(known, device, f"{known.name}-variant")
    return _like(_relative(device), device, normalise(device.name))


def _as_reported(known: Accelerator, device: Device) -> Accelerator:
    """The catalogue's card; where its driver keeps another share of it, with what is left as the driver says."""
    if device.reserved_bytes is None or known.usable_bytes is None:
        return known
    usable = device.memory_bytes - device.reserved_bytes
    if abs(usable - known.usable_bytes) <= _SAME_USABLE:
        return known
    return replace(
        known,
        memory_bytes=device.memory_bytes,
        driver_reserve_bytes=device.reserved_bytes,
        sources=(*known.sources, "memory_bytes, driver_reserve_bytes: nvidia-smi on this machine"),
    )


def _like(entry: Accelerator, device: Device, name: str) -> Accelerator:
    """The device with its memory as reported and every other figure as ``entry`` has it."""
    tool = "nvidia-smi" if device.kind == "cuda" else "hl-smi"
    return replace(
        entry,
        name=name,
        label=device.name,
        memory_bytes=device.memory_bytes,
        driver_reserve_bytes=entry.driver_reserve_bytes if device.reserved_bytes is None else device.reserved_bytes,
        compute_capability=device.compute_capability,
        sources=(
            f"memory_bytes: {tool} on this machine",
            f"bf16, cublas_workspace_bytes, context_bytes: those of {entry.label}, the nearest in the catalogue",
        ),
    )


def _relative(device: Device) -> Accelerator:
    """The catalogued accelerator of the same kind with the nearest compute capability at or below."""

    def version(text: str | None) -> tuple[int, ...]:
        parts = (text or "").split(".")
        return tuple(int(part) for part in parts) if all(part.isdigit() for part in parts) else (0,)

    same = sorted(
        (entry for entry in accelerators() if entry.kind == device.kind),
        key=lambda entry: version(entry.compute_capability),
    )
    older = [entry for entry in same if version(entry.compute_capability) <= version(device.compute_capability)]
    return older[-1] if older else same[0]
