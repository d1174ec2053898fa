"""One verification: predict, run the real engine, measure, compare.

What a run is held against is what the formulas predict; or, of a dry run, a record that was made elsewhere, or
nothing where the formulas have no number.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dsplan.comparison import Comparison, compare
from dsplan.errors import InputError
from dsplan.measurement import SCHEMA, Measurement, measurement_from_ranks
from dsplan.model import ModelShape
from dsplan.plan import Plan
from dsplan.prediction import predict, prediction_from
from dsplan.records import require_valid
from dsplan.runner_process import run_verification
from dsplan.verify_device import ChosenDevice, measured_accelerator
from dsplan.workload import Workload

#: What ``runner.spec`` reads.
SPEC_VERSION = 1
DATA = ("synthetic", "text")
#: In the folder of a run; see :mod:`dsplan.events`.
EVENTS = "events.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """A record that was made elsewhere: the file, and the one rank of it that counts."""

    source: str
    measurement: Measurement

    @property
    def num_skipped_first(self) -> int:
        """Steps that made no update before the first that did."""
        steps = self.measurement.worst_rank.steps
        return next((number for number, step in enumerate(steps) if not step.skipped), 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class NotCovered:
    """What the formulas do not cover of a dry run, as ``KEY = VALUE``: there is nothing to hold it against."""

    settings: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What is verified.

    Attributes:
        name: of the strategy, or the stem of a DeepSpeed configuration's file.
        workload: how ``model`` is trained.
        ds_config: what the engine is given.
        device: where it runs, or what a dry run stands for.
        world_size: ranks, all on this machine; a dry run takes any number.
        against: the plan that the formulas predict, which says the same as ``ds_config``; or a record; or, of a dry
            run, why there is nothing.
        steps: optimizer steps.
        data: one of :data:`DATA`.
        memory_cap_bytes: what torch's allocator may take of the device; None: all of it.
        devices: devices that the ranks share, in turn; None: one for each rank.
        rank: which rank is dry-run; None for a real run.
        allocator: text of PYTORCH_CUDA_ALLOC_CONF that a dry run replays the allocator with.
        events: a dry run leaves its events in :data:`EVENTS` of the run's folder.
        early_release: a dry run takes it that torch's watchdog sees each collective done before its wait.
        late_release: a real run keeps collectives from the watchdog, and what they hold goes at their wait: the most.
        force: make a dry run also with versions of torch and DeepSpeed that it is not tested with.
    """

    name: str
    model: ModelShape
    workload: Workload
    ds_config: Mapping[str, Any]
    device: ChosenDevice
    world_size: int
    against: Plan | Reference | NotCovered
    steps: int = 4
    data: str = "synthetic"
    memory_cap_bytes: int | None = None
    devices: int | None = None
    rank: int | None = None
    allocator: str = ""
    events: bool = False
    early_release: bool = False
    late_release: bool = False
    force: bool = False

    def specification(self) -> dict[str, Any]:
        """The file that ``python -m runner`` reads (``runner.spec.RunSpec``)."""
        return {
            "version": SPEC_VERSION,
            "model": self.model.to_config(),
            "ds_config": dict(self.ds_config),
            "sequence_length": self.workload.sequence_length,
            "activation_checkpointing": self.workload.activation_checkpointing,
            "device": self.device.kind,
            "gpus": self.world_size,
            "steps": self.steps,
            "seed": 0,
            "data": self.data,
            "memory_cap_bytes": self.memory_cap_bytes,
            "devices": self.devices,
            "late_release": self.late_release,
            **(self._dry_run() if self.device.is_dry else {}),
        }

    def _dry_run(self) -> dict[str, Any]:
        target = self.device.accelerator
        assert target is not None
        return {
            "rank": self.rank,
            "target": asdict(target),
            "allocator": self.allocator,
            "early_release": self.early_release,
            "force": self.force,
            # Blocks that the first update finds taken depend on the steps before it.
            "skipped_steps": self.against.num_skipped_first if isinstance(self.against, Reference) else 0,
        }


def require_verifiable(job: Job) -> None:
    """Refuse, before a run of a minute, what would fail in it or cannot be predicted.

    Raises:
        InputError: fp16 on a CPU, a cap where there is no allocator, or a combination that the formulas do not model.
        NoDeviceError: there are fewer devices than ranks.
    """
    job.device.require(job.devices or job.world_size)
    if job.devices is not None:
        _require_shared(job.device, job.devices, job.world_size)
    if job.memory_cap_bytes is not None:
        _require_capped(job.device)
    if job.late_release and job.device.kind != "cuda":
        _refuse_late_release(job.device)
    if job.device.computes_on_cpu and job.workload.precision == "fp16":
        raise InputError(
            "--precision: fp16 on the CPU is not supported by DeepSpeed; use bf16 or fp32, or a device that has fp16"
        )
    if isinstance(job.against, Plan):
        predict(job.model, job.against, job.device.accelerator, job.world_size, rank=job.rank)


def _require_capped(device: ChosenDevice) -> None:
    """Raise InputError where no allocator takes a cap."""
    if device.is_dry and device.computes_on_cpu:
        raise InputError("--cap: a CPU has no caching allocator to limit; name a device of the catalogue with --gpu")
    if not device.is_dry and device.kind != "cuda":
        raise InputError(f"--cap: torch limits the memory of CUDA devices only; this run is on {device.kind}")


def _refuse_late_release(device: ChosenDevice) -> None:
    """Raise InputError where it has no meaning, or is what is done anyway."""
    if device.is_dry:
        raise InputError("--late-release: is what a dry run takes by itself; leave it out, or take --early-release")
    raise InputError(f"--late-release: is about torch's NCCL; this run is on {device.kind}")


def _require_shared(device: ChosenDevice, devices: int, ranks: int) -> None:
    """Raise InputError where ranks cannot share devices, or do not."""
    if device.kind != "cuda":
        raise InputError(f"--share-devices: ranks share CUDA devices only; this run is on {device.kind}")
    if devices >= ranks:
        raise InputError(f"--share-devices: {devices} is not allowed for {ranks} ranks; it must be less than --gpus")


def verify(
    job: Job,
    output_dir: Path,
    *,
    timeout_s: float,
    tolerance_percent: float,
    on_progress: Callable[[dict[str, Any]], None],
) -> tuple[Measurement, Comparison | None]:
    """Run ``job`` in ``output_dir``, which keeps the logs, and compare: with the prediction, or with the record.

    Against a record it is the dry run that predicts; the measurement that is returned is the dry run's either way.
    None: there is nothing to compare with.

    Raises:
        MissingExtraError, InputError, RunError, KeyboardInterrupt: see :func:`dsplan.runner_process.run_verification`.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    path = output_dir / "spec.json"
    specification = job.specification()
    if job.events:
        specification["events"] = str(output_dir.absolute() / EVENTS)
    path.write_text(json.dumps(specification, indent=1), encoding="utf-8")
    records = run_verification(path, output_dir, timeout_s=timeout_s, on_progress=on_progress)
    measurement = measurement_from_ranks(
        records,
        strategy=job.name,
        model_name=job.model.name,
        model=job.model.to_config(),
        ds_config=job.ds_config,
        workload=job.workload,
        data=job.data,
        devices=job.devices,
        late_release=job.late_release,
    )
    if isinstance(job.against, Reference):
        return measurement, compare(
            job.against.measurement,
            prediction_from(measurement),
            tolerance_percent=tolerance_percent,
            against=job.against.source,
        )
    if isinstance(job.against, NotCovered):
        return measurement, None
    accelerator = job.device.accelerator or measured_accelerator(measurement.device)
    prediction = predict(job.model, job.against, accelerator, job.world_size, rank=job.rank)
    return measurement, compare(measurement, prediction, tolerance_percent=tolerance_percent)


def verification_document(measurement: Measurement, comparison: Comparison | None) -> dict[str, Any]:
    """The record with the comparison inside, if there is one, valid under ``schemas/measurement.schema.json``."""
    document = measurement.to_document()
    if comparison is not None:
        document["comparison"] = comparison.to_document()
    require_valid(SCHEMA, document, "the record is not valid, please report this")
    return document
