"""The job that the options of ``dsplan verify`` describe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from dsplan.activations import not_covered
from dsplan.catalogue import preset
from dsplan.cli.dry_run_input import allocator_text, choose, dry_rank
from dsplan.cli.inputs import names_ddp, with_ddp
from dsplan.cli.model_input import read_model_options
from dsplan.cli.options import ModelOptions, WorkloadOptions
from dsplan.cli.plan_input import configuration, named_plan, strategy_plans
from dsplan.cli.verify_against import job_against
from dsplan.cli.verify_options import (
    DEFAULT_DATA,
    DEFAULT_STEPS,
    DEFAULT_STRATEGY,
    DryRunOptions,
    RunOptions,
    given_flags,
)
from dsplan.dsconfig.ddp import ddp_document
from dsplan.engine import uncovered
from dsplan.errors import InputError, choice, require_positive
from dsplan.hardware import Cluster
from dsplan.model import ModelShape
from dsplan.plan import Plan
from dsplan.units import parse_size
from dsplan.verification import DATA, Job, NotCovered, require_verifiable
from dsplan.verify_device import DEVICES, ChosenDevice
from dsplan.workload import parse_precision

if TYPE_CHECKING:
    from dsplan.dsconfig.read import DsConfig

_CHECKPOINTED = "-ckpt"


def read_job(
    model: ModelOptions,
    workload: WorkloadOptions,
    run: RunOptions,
    dry: DryRunOptions,
    *,
    consumer: str | None = None,
) -> Job:
    """The job; without a model flag it is a small model that two CPU cores train in seconds.

    What ``consumer`` (``--for``) fills in of ``--ds-config``, and what flags set, is said on standard error.

    Raises:
        InputError: an option that is invalid or contradicted by another, or what cannot be predicted.
        NoDeviceError: the device that was asked for is not on this machine, or not often enough.
    """
    wanted = choice("--device", run.device, DEVICES)
    for flag, count in (("--steps", run.steps), ("--gpus", run.gpus), ("--share-devices", run.share_devices)):
        if count is not None:
            require_positive(flag, count)
    cap = None if run.cap is None else parse_size(run.cap, "--cap")
    if consumer is not None and run.ds_config is None:
        raise InputError(f"--for {consumer}: says who reads a DeepSpeed configuration; give one with --ds-config")
    read: DsConfig | None = None
    if dry.against is None:
        job, read = _job(model, workload, run, dry, wanted, consumer)
    else:
        job = job_against(dry.against, dry, wanted, given_flags(model) + given_flags(workload) + given_flags(run))
    job = replace(job, memory_cap_bytes=cap, devices=run.share_devices, late_release=run.late_release)
    if not job.device.is_dry:
        _require_nvme(job.name, job.ds_config)
    require_verifiable(job)
    if read is not None:
        for filled in (*read.inferred, *read.overrides):
            typer.echo(f"dsplan: {filled}", err=True)
    return job


def _job(
    model: ModelOptions,
    workload: WorkloadOptions,
    run: RunOptions,
    dry: DryRunOptions,
    wanted: str,
    consumer: str | None,
) -> tuple[Job, DsConfig | None]:
    """The job, and the configuration that it was read from."""
    data = choice("--data", run.data or DEFAULT_DATA, DATA)
    device = choose(dry, wanted)
    ranks = run.gpus or device.default_ranks
    cluster = Cluster(accelerator=device.accelerator, gpus_per_node=ranks)
    is_default = not given_flags(model)
    against: Plan | NotCovered
    found: DsConfig | None = None
    shape = default_model() if is_default else read_model_options(model).shape
    if run.ds_config is not None:
        if run.strategy is not None:
            raise InputError(
                f"--strategy {run.strategy} and --ds-config {run.ds_config} contradict each other; give one of them"
            )
        found = configuration(
            run.ds_config,
            workload,
            shape,
            cluster,
            dry_run=device.is_dry,
            consumer=consumer,
            training_steps=run.steps or DEFAULT_STEPS,
        )
        plan, trained = found.plan, found.workload
        ds_config = _document(found, shape, cluster)
        against = NotCovered(settings=found.not_modelled) if found.not_modelled else plan
    else:
        plan = _strategy(run, _of_the_cpu(run, workload, device), shape, cluster)
        plan = with_small_buckets(plan, shape) if is_default else plan
        ds_config = _emitted(plan, shape, cluster)
        if plan.ddp:
            ds_config = ddp_document(plan, ds_config)
        against, trained = plan, plan.workload
    why = not_covered(shape, trained) or uncovered(shape, plan)
    if why is not None:
        settings = against.settings if isinstance(against, NotCovered) else ()
        against = NotCovered(settings=(f"model_type = {shape.model_type} ({why})", *settings))
    job = Job(
        name=plan.name,
        model=shape,
        workload=trained,
        ds_config=ds_config,
        device=device,
        world_size=ranks,
        against=against,
        steps=run.steps or DEFAULT_STEPS,
        data=data,
        rank=dry_rank(dry.rank, shape, plan, device.accelerator, ranks) if device.is_dry else None,
        allocator=allocator_text(dry.alloc_conf, device) if device.is_dry else "",
        early_release=dry.early_release,
    )
    return job, found


def describe(job: Job) -> str:
    """What is about to run, for people."""
    device = job.device
    if device.accelerator is None or not device.is_dry:
        return f"verifying {job.name} on {job.world_size} x {device.kind} ({device.reason})"
    return f"dry run of {job.name}, rank {job.rank} of {job.world_size} x {device.accelerator.label} ({device.reason})"


def default_model() -> ModelShape:
    """gpt-mini with one token per byte and a short block: 2.8M parameters."""
    return replace(preset("gpt-mini"), name="gpt-mini, small", vocab_size=256, max_position_embeddings=128)


def with_small_buckets(plan: Plan, model: ModelShape) -> Plan:
    """``plan`` with buckets that a small model fills several times in one backward pass, as a large one does."""
    if plan.zero.stage == 0:
        return plan
    largest = max(parameter.numel for parameter in model.block_parameters)
    return replace(plan, zero=replace(plan.zero, reduce_bucket_size=2 * largest, allgather_bucket_size=4 * largest))


def _strategy(run: RunOptions, workload: WorkloadOptions, model: ModelShape, cluster: Cluster) -> Plan:
    name = run.strategy or DEFAULT_STRATEGY
    checkpointed = workload.activation_checkpointing not in (None, "none")
    if checkpointed and not name.endswith(_CHECKPOINTED):
        name += _CHECKPOINTED
    flag = "--plan" if names_ddp(name) else "--strategy"
    plans = strategy_plans(workload, model, cluster)
    return named_plan(with_ddp(plans, name, model, flag), name, flag)


def _of_the_cpu(run: RunOptions, workload: WorkloadOptions, device: ChosenDevice) -> WorkloadOptions:
    """``workload``, of DDP on a CPU in fp32: autocast lowers other operators there (aten/src/ATen/autocast_mode.cpp),
    which no formula knows.

    Raises:
        InputError: another precision was asked for.
    """
    if not device.computes_on_cpu or not names_ddp(run.strategy or DEFAULT_STRATEGY):
        return workload
    if workload.precision is not None and parse_precision(workload.precision) != "fp32":
        raise InputError(
            f"--precision {workload.precision}: torch's autocast lowers other operators on a CPU, which ddp's formulas "
            "do not know; allowed: fp32"
        )
    return replace(workload, precision="fp32")


def _emitted(plan: Plan, model: ModelShape, cluster: Cluster) -> dict[str, Any]:
    from dsplan.dsconfig.emit import emit

    return emit(plan, model, cluster)


def _document(found: DsConfig, model: ModelShape, cluster: Cluster) -> dict[str, Any]:
    """The configuration with what a training script adds: batch sizes for these ranks, an optimizer."""
    from dsplan.dsconfig.batch import ACCUMULATION, MICRO_BATCH, TRAIN_BATCH

    added: dict[str, Any] = {
        TRAIN_BATCH: found.train_batch_size,
        MICRO_BATCH: found.workload.micro_batch_size,
        ACCUMULATION: found.workload.gradient_accumulation_steps,
    }
    if "optimizer" not in found.document:
        added["optimizer"] = _emitted(found.plan, model, cluster)["optimizer"]
    return {**found.document, **added}


def _require_nvme(name: str, ds_config: Mapping[str, Any]) -> None:
    zero = ds_config.get("zero_optimization", {})
    for section in (zero.get("offload_optimizer", {}), zero.get("offload_param", {})):
        path = section.get("nvme_path")
        if section.get("device") == "nvme" and not (path and Path(path).is_dir()):
            raise InputError(
                f"{name}: offloads to NVMe, and nvme_path {path} is not a folder on this machine; "
                "verify a configuration that names one, with --ds-config"
            )
