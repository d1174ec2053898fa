"""Reading a DeepSpeed configuration into a :class:`Plan`, as DeepSpeed 0.19.8 reads it.

What DeepSpeed ignores or corrects without a word (misspelled keys, ``"auto"``, strings for numbers)
and what the formulas do not model is an error here: the estimate of a file is right or refused. Where a
framework hands the file to DeepSpeed, it is read as that framework completes it (:mod:`dsplan.dsconfig.resolve`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from dsplan.dsconfig.batch import ACCUMULATION, MICRO_BATCH, TRAIN_BATCH, resolve_batch_sizes
from dsplan.dsconfig.consumers import DEEPSPEED
from dsplan.dsconfig.document import load_document
from dsplan.dsconfig.engine_rules import Engine, require_engine
from dsplan.dsconfig.not_modelled import GRAD_ACCUM_DTYPE, autocast_dtype, require_modelled
from dsplan.dsconfig.optimizer_section import optimizer_of
from dsplan.dsconfig.precision_section import gradient_dtypes, precision_of, with_current_names
from dsplan.dsconfig.removed import require_not_removed
from dsplan.dsconfig.resolve import Filled, Script, resolve
from dsplan.dsconfig.schema import validate
from dsplan.dsconfig.zero_section import zero_config
from dsplan.errors import InputError, require_positive
from dsplan.plan import Plan
from dsplan.workload import CheckpointOptions, Workload

#: DeepSpeed ``runtime/constants.py`` (``GRADIENT_CLIPPING_DEFAULT``).
GRADIENT_CLIPPING_DEFAULT = 1.0
#: The optimizer of the nearest plan where the file's is not modelled.
_NEAREST = "adamw"


@dataclass(frozen=True, slots=True, kw_only=True)
class DsConfig:
    """One configuration file, read for ``world_size`` data-parallel ranks.

    Attributes:
        path: the file.
        plan: what is planned from it; ``plan.name`` is the stem of the file. Where something is not modelled, it is
            the nearest plan that is: good for choosing a rank, not for a number.
        workload: how the model is trained.
        not_modelled: what the formulas do not model, as ``KEY = VALUE``; only a reader for a dry run lets it pass.
        world_size: ranks that the batch sizes were resolved for.
        train_batch_size: samples of one optimizer step on all ranks.
        activation_checkpointing: the section of that name, or None. It only sets options: the model
            has to call ``deepspeed.checkpointing.checkpoint``.
        document: what DeepSpeed gets: the file, with what is filled in and the overrides.
        consumer: who hands the file to DeepSpeed.
        inferred: what that framework filled in: ``"auto"`` and what the file leaves out.
        overrides: what flags set in place of the file, or because it has nothing there.
    """

    path: Path
    plan: Plan
    workload: Workload
    not_modelled: tuple[str, ...]
    world_size: int
    train_batch_size: int
    activation_checkpointing: Mapping[str, Any] | None
    document: Mapping[str, Any]
    consumer: str = DEEPSPEED
    inferred: tuple[Filled, ...] = ()
    overrides: tuple[Filled, ...] = ()


def read_ds_config(
    path: Path | str,
    *,
    world_size: int,
    sequence_length: int = 1024,
    activation_checkpointing: str | None = None,
    optimizer: str | None = None,
    micro_batch_size: int | None = None,
    gradient_accumulation_steps: int | None = None,
    dry_run: bool = False,
    consumer: str = DEEPSPEED,
    script: Script | None = None,
) -> DsConfig:
    """Read ``path`` for ``world_size`` data-parallel ranks.

    Args:
        path: JSON, or Hjson.
        world_size: data-parallel ranks.
        sequence_length: tokens of one sample; no DeepSpeed key holds it.
        activation_checkpointing: how the model checkpoints; by default ``deepspeed`` when the file
            has the section and ``none`` when not.
        optimizer: the optimizer that the script passes, for a file without the section; Adam is
            then taken for torch's, or with offload_optimizer for DeepSpeed's CPU Adam.
        micro_batch_size: in place of the file's; train_batch_size is then computed anew.
        gradient_accumulation_steps: in place of the file's, likewise.
        dry_run: let pass what the formulas do not model and a dry run covers.
        consumer: who hands the file to DeepSpeed, one of :data:`dsplan.dsconfig.consumers.CONSUMERS`.
        script: what the script tells that framework, from which it fills in ``"auto"``.

    Raises:
        InputError: the file cannot be read; the consumer or DeepSpeed would refuse it; it has unknown
            keys, wrong types or ``"auto"`` that nobody fills in; or a setting changes memory and is not
            modelled yet.
    """
    path = Path(path)
    return read_document(
        load_document(path),
        path=path,
        world_size=world_size,
        sequence_length=sequence_length,
        activation_checkpointing=activation_checkpointing,
        optimizer=optimizer,
        micro_batch_size=micro_batch_size,
        gradient_accumulation_steps=gradient_accumulation_steps,
        dry_run=dry_run,
        consumer=consumer,
        script=script,
    )


def read_document(
    given: Mapping[str, Any],
    *,
    path: Path,
    world_size: int,
    sequence_length: int = 1024,
    activation_checkpointing: str | None = None,
    optimizer: str | None = None,
    micro_batch_size: int | None = None,
    gradient_accumulation_steps: int | None = None,
    dry_run: bool = False,
    consumer: str = DEEPSPEED,
    script: Script | None = None,
) -> DsConfig:
    """As :func:`read_ds_config`, of what is in the file or would be: ``path`` is the name that messages give it."""
    require_positive("world_size", world_size)
    try:
        document = _override(given, micro_batch_size, gradient_accumulation_steps)
        document, inferred = resolve(document, consumer, script or Script(), world_size)
        found = _read(
            path=path,
            document=document,
            world_size=world_size,
            sequence_length=sequence_length,
            activation_checkpointing=activation_checkpointing,
            client_optimizer=optimizer,
            dry_run=dry_run,
        )
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    overrides = tuple(_overrides(given, found, micro_batch_size, gradient_accumulation_steps, optimizer))
    return replace(found, consumer=consumer.casefold(), inferred=inferred, overrides=overrides)


def _read(
    *,
    path: Path,
    document: Mapping[str, Any],
    world_size: int,
    sequence_length: int,
    activation_checkpointing: str | None,
    client_optimizer: str | None,
    dry_run: bool,
) -> DsConfig:
    require_not_removed(document)
    mistakes = validate(document)
    if mistakes:
        raise InputError("; ".join(mistakes))

    current = with_current_names(document)
    precision = precision_of(current)
    settings = require_modelled(current, precision, dry_run=dry_run)
    dtypes = gradient_dtypes(current)
    if any(setting.startswith(GRAD_ACCUM_DTYPE) for setting in settings):
        dtypes["grad_accum_dtype"] = None  # the nearest that is modelled
    zero = zero_config(current)
    optimizer = optimizer_of(current, zero, client_optimizer, dry_run=dry_run)
    batch = resolve_batch_sizes(current, world_size)
    checkpointing = document.get("activation_checkpointing")
    if activation_checkpointing is None:
        activation_checkpointing = "none" if checkpointing is None else "deepspeed"
    require_engine(
        Engine(document=current, precision=precision, world_size=world_size, checkpointing=activation_checkpointing)
    )
    workload = Workload(
        micro_batch_size=batch.micro_batch_size,
        sequence_length=sequence_length,
        gradient_accumulation_steps=batch.gradient_accumulation_steps,
        precision=precision,
        optimizer=optimizer.name,
        activation_checkpointing=activation_checkpointing,
        **dtypes,
    )
    plan = Plan(
        name=path.stem,
        zero=zero,
        workload=replace(workload, optimizer=_NEAREST) if optimizer.not_modelled else workload,
        gradient_clipping=float(document.get("gradient_clipping", GRADIENT_CLIPPING_DEFAULT)),
        torch_adam=optimizer.torch_adam,
        checkpointing=_checkpoint_options(checkpointing),
        torch_autocast=autocast_dtype(current, precision),
    )
    return DsConfig(
        path=path,
        plan=plan,
        workload=workload,
        not_modelled=(*settings, *optimizer.not_modelled),
        world_size=world_size,
        train_batch_size=batch.train_batch_size,
        activation_checkpointing=checkpointing,
        document=document,
    )


def _checkpoint_options(section: Mapping[str, Any] | None) -> CheckpointOptions:
    """``runtime/activation_checkpointing/config.py``, as far as it is about memory."""
    names = [field.name for field in fields(CheckpointOptions)]
    return CheckpointOptions(**{name: section[name] for name in names if section and section.get(name) is not None})


def _override(document: Mapping[str, Any], micro_batch: int | None, steps: int | None) -> dict[str, Any]:
    changed = dict(document)
    for key, value in ((MICRO_BATCH, micro_batch), (ACCUMULATION, steps)):
        if value is not None:
            require_positive(key, value)
            changed[key] = value
            # The total follows from the parts; the file's belongs to its own parts.
            changed.pop(TRAIN_BATCH, None)
    return changed


def _overrides(
    given: Mapping[str, Any], found: DsConfig, micro_batch: int | None, steps: int | None, optimizer: str | None
) -> Iterator[Filled]:
    """What the flags changed of ``given``, which is the file as it stands."""
    why = {True: "in place of the file's", False: "the file has none"}
    for key, value, flag in (
        (MICRO_BATCH, micro_batch, "--micro-batch-size"),
        (ACCUMULATION, steps, "--gradient-accumulation-steps"),
    ):
        if value is not None and value != given.get(key):
            yield Filled(key=key, before=given.get(key), value=value, why=why[key in given], by=flag)
    before = given.get(TRAIN_BATCH)
    if (micro_batch or steps) and before not in (None, found.train_batch_size):
        flag = "--micro-batch-size" if micro_batch else "--gradient-accumulation-steps"
        value = found.train_batch_size
        yield Filled(key=TRAIN_BATCH, before=before, value=value, why="computed anew", by=flag)
    if optimizer is not None and "optimizer" not in given:
        yield Filled(key="optimizer", before=None, value=optimizer, why="the script passes it", by="--optimizer")
