"""The plans that the options ask for: every strategy, or the one of a DeepSpeed configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsplan.cli.flags import naming_flags
from dsplan.cli.options import WorkloadOptions
from dsplan.errors import InputError, choice, require_positive
from dsplan.hardware import Cluster
from dsplan.ladder import LARGEST
from dsplan.model import ModelShape
from dsplan.plan import Plan
from dsplan.workload import ACTIVATION_CHECKPOINTING, OPTIMIZERS, Workload, parse_precision

if TYPE_CHECKING:
    from dsplan.dsconfig.read import DsConfig


def strategy_plans(
    options: WorkloadOptions, model: ModelShape, cluster: Cluster, nvme_path: Path | None = None
) -> tuple[Plan, ...]:
    """Every strategy of the table; with ``--activation-checkpointing`` only those of that kind.

    Raises:
        InputError: a value that is not allowed, or a sequence longer than the model's positions.
    """
    from dsplan.dsconfig.buckets import with_nvme_path
    from dsplan.strategies import standard_plans

    kind = _checkpointing(options)
    plans = standard_plans(
        model,
        Workload(
            micro_batch_size=_positive(options.micro_batch_size, "--micro-batch-size") or 1,
            sequence_length=_sequence_length(options, model),
            gradient_accumulation_steps=_positive(options.gradient_accumulation_steps, "--gradient-accumulation-steps")
            or 1,
            precision=_precision(options) or default_precision(cluster),
            optimizer=_optimizer(options) or "adamw",
        ),
        checkpointing_kind="torch" if kind in (None, "none") else kind,
    )
    if nvme_path is not None:
        plans = tuple(replace(plan, zero=with_nvme_path(plan.zero, str(nvme_path))) for plan in plans)
    if kind is None:
        return plans
    return tuple(plan for plan in plans if plan.workload.activation_checkpointing == kind)


def named_plan(plans: tuple[Plan, ...], name: str, flag: str) -> Plan:
    """The plan called ``name``, which ``flag`` asked for.

    Raises:
        InputError: there is none, with the nearest names, or with the option that excludes it.
    """
    names = {plan.name.casefold(): plan for plan in plans}
    found = names.get(name.strip().casefold())
    if found is not None:
        return found
    excluding = _excluding(plans[0].workload, name.strip().casefold())
    if excluding:
        raise InputError(f"{flag}: {name} does not go with {excluding}; allowed: {', '.join(names)}")
    return next(plan for plan in plans if plan.name == choice(flag, name, names))


def _excluding(workload: Workload, name: str) -> str:
    """The option without which there would be a plan of this name; empty where none is the reason."""
    from dsplan.strategies import standard_plans

    smallest = ModelShape(num_layers=1, num_attention_heads=1, hidden_size=8)  # every model has the same plans
    free = replace(workload, micro_batch_size=1, sequence_length=8, activation_checkpointing="none")
    if name in {plan.name for plan in standard_plans(smallest, free)}:
        kind = workload.activation_checkpointing
        return f"--activation-checkpointing {kind}" + ("" if kind == "none" else f", whose plan is {name}-ckpt")
    if name in {plan.name for plan in standard_plans(smallest, replace(free, optimizer="adamw"))}:
        return f"--optimizer {workload.optimizer}, which has no such plan"
    return ""


def configuration(
    path: Path,
    options: WorkloadOptions,
    model: ModelShape,
    cluster: Cluster,
    *,
    dry_run: bool = False,
    consumer: str | None = None,
    training_steps: int | None = None,
    document: Mapping[str, Any] | None = None,
) -> DsConfig:
    """The DeepSpeed configuration in ``path``; for ``dry_run`` also with what only a dry run covers.

    The options give what the file leaves to the script: the sequence, how the model checkpoints, and an
    optimizer or batch sizes that are not in it. Where ``consumer`` (``--for``) hands the file to DeepSpeed, they
    are the arguments from which it fills in the rest; ``training_steps`` is another. ``document`` is read in place of
    what is in the file.

    Raises:
        InputError: the file is refused, or an option contradicts it.
    """
    from dsplan.dsconfig.batch import ACCUMULATION, MICRO_BATCH, TRAIN_BATCH
    from dsplan.dsconfig.consumers import CONSUMERS, DEEPSPEED
    from dsplan.dsconfig.document import load_document
    from dsplan.dsconfig.read import read_document
    from dsplan.dsconfig.resolve import Script

    micro = _positive(options.micro_batch_size, "--micro-batch-size")
    steps = _positive(options.gradient_accumulation_steps, "--gradient-accumulation-steps")
    precision, optimizer = _precision(options), _optimizer(options)
    sequence_length, kind = _sequence_length(options, model), _checkpointing(options)
    consumer = choice("--for", consumer or DEEPSPEED, CONSUMERS)
    document = load_document(path, consumer) if document is None else document
    # A framework fills in what it fills in, and DeepSpeed stops at the rest; a script has its own ways.
    scripted = consumer == DEEPSPEED
    without_batch = scripted and TRAIN_BATCH not in document and MICRO_BATCH not in document
    found = read_document(
        document,
        path=path,
        world_size=cluster.world_size,
        sequence_length=sequence_length,
        activation_checkpointing=kind,
        optimizer=optimizer,
        micro_batch_size=micro if without_batch else None,
        gradient_accumulation_steps=steps if without_batch and ACCUMULATION not in document else None,
        dry_run=dry_run,
        consumer=consumer,
        script=Script(
            model=model,
            micro_batch_size=micro,
            gradient_accumulation_steps=steps,
            precision=precision,
            training_steps=training_steps,
        ),
    )
    workload = found.workload
    _require_plausible(f"{path}: train_micro_batch_size_per_gpu", workload.micro_batch_size)
    for flag, given, read in (
        ("--micro-batch-size", micro, workload.micro_batch_size),
        ("--gradient-accumulation-steps", steps, workload.gradient_accumulation_steps),
        ("--precision", precision, workload.precision),
        ("--optimizer", optimizer, workload.optimizer),
    ):
        if given is not None and given != read:
            raise InputError(
                f"{flag} {given} contradicts --ds-config {path}, which says {read}; "
                "leave the flag out or change the file"
            )
    return found


def default_precision(cluster: Cluster) -> str:
    """bf16 where the device computes in it, or no device is known; else fp16."""
    return "bf16" if cluster.accelerator is None or cluster.accelerator.bf16 else "fp16"


def _sequence_length(options: WorkloadOptions, model: ModelShape) -> int:
    length = _positive(options.seq_len, "--seq-len")
    if length is None:
        return model.max_position_embeddings
    if length > model.max_position_embeddings:
        raise InputError(
            f"--seq-len: {length} is longer than the {model.max_position_embeddings} positions of the model "
            f"({model.name}); shorten it, or give the model more with --block-size {length}"
        )
    return length


def _positive(value: int | None, flag: str) -> int | None:
    if value is not None:
        require_positive(flag, value)
        _require_plausible(flag, value)
    return value


def _require_plausible(name: str, value: int) -> None:
    """Numbers beyond what a ladder looks for are slips of the keyboard, and take a replay for ever."""
    if value > LARGEST and name != "--seq-len":  # which has the model's positions for a limit
        raise InputError(f"{name}: {value} is not allowed; at most {LARGEST}")


def _precision(options: WorkloadOptions) -> str | None:
    with naming_flags():
        return None if options.precision is None else parse_precision(options.precision)


def _optimizer(options: WorkloadOptions) -> str | None:
    return None if options.optimizer is None else choice("--optimizer", options.optimizer, OPTIMIZERS)


def _checkpointing(options: WorkloadOptions) -> str | None:
    kind = options.activation_checkpointing
    return None if kind is None else choice("--activation-checkpointing", kind, ACTIVATION_CHECKPOINTING)
