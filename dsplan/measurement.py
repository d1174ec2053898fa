"""Measurement: what a verification run measured, as types and as the record that is kept of it.

The record (``schemas/measurement.schema.json``) is made on the machine that ran, and reads the same
everywhere: torch is not needed. Every ``_bytes`` is an int of bytes.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from dsplan import __version__
from dsplan.dry_run import DryRun, dry_run_from
from dsplan.errors import InputError
from dsplan.records import read_record, require_valid
from dsplan.workload import Workload

SCHEMA = "measurement"
#: Raised when a key changes its meaning or goes; a new key does not raise it.
SCHEMA_VERSION = 1
STEP_PHASES = ("forward", "backward", "step")
STAGE_THAT_PREFETCHES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseRecord:
    """One phase of one step on one rank.

    Attributes:
        level_before_bytes: allocated when the phase began.
        level_bytes: allocated when it ended.
        peak_bytes: the most allocated within it.
        reserved_bytes: what the allocator held at its end; None where there is no caching allocator.
        peak_reserved_bytes: the most that the allocator held within it; None likewise.
        device_bytes: what the driver showed as used at its end; None where there is no driver to ask.
        rss_bytes: resident memory of the process at its end.
    """

    level_before_bytes: int
    level_bytes: int
    peak_bytes: int
    reserved_bytes: int | None
    peak_reserved_bytes: int | None
    device_bytes: int | None
    rss_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """One step; ``skipped``: the optimizer made no update, because an fp16 gradient overflowed."""

    index: int
    phases: Mapping[str, PhaseRecord]
    loss: float | None
    skipped: bool
    seconds: float

    @property
    def peak_bytes(self) -> int:
        return max(phase.peak_bytes for phase in self.phases.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class HostRecord:
    """Host memory of one rank's process; of a dry run, of the process that a real rank would be.

    Attributes:
        base_rss_bytes: resident once the libraries are loaded and the process group is joined; None in
            records from before it was read.
        rss_bytes: resident at the end.
        peak_rss_bytes: the most resident from then on; None where the kernel does not say.
        pinned_bytes: the most that torch's pinned allocator held; None where it cannot be read.
        heap_free_bytes: of what is resident at the end, what malloc keeps of memory that was freed; None where it
            cannot be asked, and in records from before it was.
        mmap_threshold_bytes: from which size on malloc mapped memory apart, where the environment fixed that
            (:mod:`dsplan.heap_threshold`); None: it moved.
    """

    base_rss_bytes: int | None
    rss_bytes: int
    peak_rss_bytes: int | None
    pinned_bytes: int | None
    heap_free_bytes: int | None = None
    mmap_threshold_bytes: int | None = None

    @property
    def risen_bytes(self) -> int | None:
        """What the run added to resident memory at its peak; None where one of the two was not read."""
        if self.peak_rss_bytes is None or self.base_rss_bytes is None:
            return None
        return self.peak_rss_bytes - self.base_rss_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class RankRecord:
    """What one rank measured: ``deepspeed.initialize``, and every step in order; ``dry_run``: it was a dry run."""

    rank: int
    init: PhaseRecord
    init_seconds: float
    steps: tuple[StepRecord, ...]
    host: HostRecord
    dry_run: DryRun | None = None

    @property
    def peak_allocated_bytes(self) -> int:
        """The most allocated over the steps, initialisation apart."""
        return max(step.peak_bytes for step in self.steps)

    def to_document(self) -> dict[str, Any]:
        """One of the ``ranks`` of a record."""
        document = {**asdict(self), "steps": [asdict(step) for step in self.steps]}
        del document["dry_run"]
        return document if self.dry_run is None else {**document, "dry_run": self.dry_run.to_document()}


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceRecord:
    """The device of every rank; ``memory_bytes`` is the driver's total, or the host's on a CPU.

    Of a dry run ``kind`` is ``fake``, and the rest is the device that it stands for.
    """

    kind: str
    name: str
    memory_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """What was run.

    Attributes:
        strategy: name of the plan; the stem of the file for a DeepSpeed configuration of the user's.
        model_name: what the model is called.
        model: its model file.
        num_parameters: what torch counted.
        ds_config: the DeepSpeed configuration as the engine was given it.
        workload: batch, sequence, precision, optimizer, checkpointing.
        world_size: ranks; a dry run has the record of one of them.
        data: ``synthetic`` or ``text``.
        devices: devices that the ranks shared; None: each had its own.
        late_release: what collectives hold was given back at their wait, never before.
    """

    strategy: str
    model_name: str
    model: Mapping[str, Any]
    num_parameters: int
    ds_config: Mapping[str, Any]
    workload: Workload
    world_size: int
    data: str
    devices: int | None = None
    late_release: bool = False

    @property
    def prefetches(self) -> bool:
        """Whether DeepSpeed gathers parameters in advance, from the second pass on."""
        return bool(self.ds_config.get("zero_optimization", {}).get("stage") == STAGE_THAT_PREFETCHES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One verification run on one machine.

    Attributes:
        created: when, ISO 8601 in UTC.
        versions: library -> version.
        optimizer: the class that DeepSpeed instantiated.
    """

    dsplan_version: str
    created: str
    versions: Mapping[str, str]
    device: DeviceRecord
    configuration: Configuration
    optimizer: str
    ranks: tuple[RankRecord, ...]

    @property
    def worst_rank(self) -> RankRecord:
        """The rank that allocated most over the steps; the first of several."""
        return max(self.ranks, key=lambda rank: rank.peak_allocated_bytes)

    @property
    def dry_run(self) -> DryRun | None:
        """What the dry run says beyond the numbers; None for a real run."""
        return self.worst_rank.dry_run

    def only_rank(self, rank: int) -> Measurement:
        """The measurement of one rank alone.

        Raises:
            InputError: it was not recorded.
        """
        kept = tuple(record for record in self.ranks if record.rank == rank)
        if not kept:
            known = ", ".join(str(record.rank) for record in self.ranks)
            raise InputError(f"rank {rank} is not in the record, which has {known}")
        return replace(self, ranks=kept)

    @property
    def peak_allocated_bytes(self) -> int:
        """The most that the worst rank allocated over the steps."""
        return self.worst_rank.peak_allocated_bytes

    @property
    def peak_reserved_bytes(self) -> int | None:
        """The most that an allocator held over the steps; None without a caching allocator."""
        return _most(phase.peak_reserved_bytes for phase in self._phases())

    @property
    def peak_device_bytes(self) -> int | None:
        """The most that the driver showed after a phase of a step; None without a driver to ask."""
        return _most(phase.device_bytes for phase in self._phases())

    def _phases(self) -> Iterable[PhaseRecord]:
        return (phase for rank in self.ranks for step in rank.steps for phase in step.phases.values())

    def to_document(self) -> dict[str, Any]:
        """The record, valid under the schema; :func:`measurement_from_document` reads it back."""
        configuration = {
            **{field.name: getattr(self.configuration, field.name) for field in fields(Configuration)},
            "workload": asdict(self.configuration.workload),
        }
        return {
            "schema_version": SCHEMA_VERSION,
            "dsplan_version": self.dsplan_version,
            "created": self.created,
            "versions": dict(self.versions),
            "device": asdict(self.device),
            "configuration": configuration,
            "optimizer": self.optimizer,
            "peak_allocated_bytes": self.peak_allocated_bytes,
            "peak_reserved_bytes": self.peak_reserved_bytes,
            "peak_device_bytes": self.peak_device_bytes,
            "ranks": [rank.to_document() for rank in self.ranks],
        }


def measurement_from_ranks(
    records: Sequence[Mapping[str, Any]],
    *,
    strategy: str,
    model_name: str,
    model: Mapping[str, Any],
    ds_config: Mapping[str, Any],
    workload: Workload,
    data: str,
    devices: int | None = None,
    late_release: bool = False,
) -> Measurement:
    """One measurement of what the ranks recorded (``runner.train``), in rank order.

    Raises:
        InputError: a record lacks a key or holds a value of the wrong type.
    """
    first = records[0]
    kept = {field.name for field in fields(RankRecord)}
    document = {
        "schema_version": SCHEMA_VERSION,
        "dsplan_version": __version__,
        "configuration": {
            "strategy": strategy,
            "model_name": model_name,
            "model": dict(model),
            "num_parameters": first.get("num_parameters"),
            "ds_config": dict(ds_config),
            "workload": asdict(workload),
            "world_size": first.get("world_size", len(records)),
            "data": data,
            "devices": devices,
            "late_release": late_release,
        },
        "versions": {"python": platform.python_version(), **first.get("versions", {})},
        **{key: first[key] for key in ("created", "device", "optimizer") if key in first},
        # Filled from the phases, once those are known to be there.
        "peak_allocated_bytes": 0,
        "peak_reserved_bytes": None,
        "peak_device_bytes": None,
        "ranks": [{key: value for key, value in record.items() if key in kept} for record in records],
    }
    _without_infinities(document["ranks"])
    require_valid(SCHEMA, document, "the ranks' records")
    return _parse(document)


def read_measurement(path: Path | str) -> Measurement:
    """The measurement in ``path``.

    Raises:
        InputError: the file cannot be read, is not JSON, or a key of it is wrong (file and key are named).
    """
    return _parse(read_record(path, SCHEMA))


def measurement_from_document(document: Mapping[str, Any], where: str) -> Measurement:
    """The measurement of a record; ``where`` begins the message of the InputError for a corrupt one."""
    require_valid(SCHEMA, document, where)
    return _parse(document)


def _parse(document: Mapping[str, Any]) -> Measurement:
    """A valid record as types. What can be computed from the phases is computed, not read."""
    configuration = document["configuration"]
    return Measurement(
        dsplan_version=document["dsplan_version"],
        created=document["created"],
        versions=document["versions"],
        device=DeviceRecord(**document["device"]),
        configuration=Configuration(**{**configuration, "workload": Workload(**configuration["workload"])}),
        optimizer=document["optimizer"],
        ranks=tuple(_rank(rank) for rank in document["ranks"]),
    )


def _rank(document: Mapping[str, Any]) -> RankRecord:
    steps = tuple(
        StepRecord(**{**step, "phases": {name: PhaseRecord(**step["phases"][name]) for name in STEP_PHASES}})
        for step in document["steps"]
    )
    return RankRecord(
        rank=document["rank"],
        init=PhaseRecord(**document["init"]),
        init_seconds=document["init_seconds"],
        steps=steps,
        host=HostRecord(**document["host"]),
        dry_run=dry_run_from(document["dry_run"]) if "dry_run" in document else None,
    )


def _without_infinities(ranks: Any) -> None:
    """A loss that overflowed becomes null: JSON has no NaN."""
    for rank in ranks:
        steps = rank.get("steps", ())
        rank["steps"] = [{**step, "loss": _finite(step.get("loss"))} for step in steps]


def _finite(loss: Any) -> Any:
    return loss if not isinstance(loss, float) or math.isfinite(loss) else None


def _most(sizes: Iterable[int | None]) -> int | None:
    known = [size for size in sizes if size is not None]
    return max(known) if known else None
