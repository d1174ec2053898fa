"""The dry run of what a record says was run elsewhere (``dsplan verify --against``)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dsplan.cli.dry_run_input import allocator_text, rank_number, require_dry, target_of
from dsplan.cli.verify_options import DryRunOptions
from dsplan.errors import InputError
from dsplan.measurement import Measurement, read_measurement
from dsplan.modelfile import shape_from_config
from dsplan.verification import Job, Reference
from dsplan.verify_device import dry_run_device, measured_accelerator

#: Options of the run that a record does not hold.
_NOT_RECORDED = ("--device", "--cap")


def job_against(path: Path, dry: DryRunOptions, wanted: str, given: Sequence[str]) -> Job:
    """The dry run of the record in ``path``: of the rank that took most, unless ``--rank`` names another.

    Args:
        path: the record.
        dry: options; ``--gpu`` says what the device was where the record's name for it does not.
        wanted: ``--device``.
        given: the flags of the model, the workload and the run that were given: all that the record says.

    Raises:
        InputError: the file is no record, an option contradicts it, or the rank is not in it.
    """
    reason = require_dry(dry, wanted) or "asked for"
    contradicting = [flag for flag in given if flag not in _NOT_RECORDED]
    if contradicting:
        raise InputError(
            f"{', '.join(contradicting)} and --against {path} contradict each other: the record says what was run; "
            "leave one of them out"
        )
    record = read_measurement(path)
    configuration = record.configuration
    device = dry_run_device(target_of(dry) or measured_accelerator(record.device), reason)
    kept = _only(record, path, rank_number(dry.rank, configuration.world_size))
    return Job(
        name=configuration.strategy,
        model=shape_from_config(
            dict(configuration.model), where=f"{path}: configuration.model", name=configuration.model_name
        ),
        workload=configuration.workload,
        ds_config=configuration.ds_config,
        device=device,
        world_size=configuration.world_size,
        against=Reference(source=str(path), measurement=kept),
        steps=len(kept.worst_rank.steps),
        data=configuration.data,
        rank=kept.worst_rank.rank,
        allocator=allocator_text(dry.alloc_conf, device),
        early_release=dry.early_release,
    )


def _only(record: Measurement, path: Path, rank: int | None) -> Measurement:
    try:
        return record.only_rank(record.worst_rank.rank if rank is None else rank)
    except InputError as error:
        raise InputError(f"--rank: {path}: {error}") from error
