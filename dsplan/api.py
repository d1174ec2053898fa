"""The Python interface: what the commands do, as functions that return values and print nothing.

``from dsplan import api`` (docs/api.md). Nothing here imports torch or DeepSpeed. Every function raises
:class:`dsplan.errors.InputError`, whose text is one line, for a value that is not allowed, and says what is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from dsplan.catalogue import accelerator, decoder_names, preset, preset_names
from dsplan.errors import InputError
from dsplan.hardware import Cluster
from dsplan.hub_names import published_name
from dsplan.infer import infer_shape
from dsplan.model import ModelShape
from dsplan.modelfile import changed, read_model, shape_from_config
from dsplan.units import parse_count, parse_size
from dsplan.workload import Workload, parse_optimizer, parse_precision

if TYPE_CHECKING:
    from dsplan.check.finding import Finding
    from dsplan.estimate import Estimate, PlanEstimate
    from dsplan.plan import Plan
    from dsplan.search.fit import Largest

__all__ = ["Model", "check", "cluster", "emit", "estimate", "fit", "model", "plans", "recommend", "workload"]

#: What names a model: a shape, a name of the catalogue, a file or folder, a configuration, or a parameter count.
Model: TypeAlias = "ModelShape | str | Path | Mapping[str, Any]"


def model(source: Model, **changes: Any) -> ModelShape:
    """A model's shape: exact parameters, names and sizes.

    Args:
        source: a name of the catalogue (``"llama-3.1-8b"``, ``"gpt2-xl"``) or of the Hugging Face Hub
            (``"meta-llama/Llama-3.1-8B"``), which is not asked, a parameter count (``"45B"``), the path of
            a model file, ``config.json`` or its folder, the parsed configuration, or a shape, which is returned.
        changes: fields of :class:`ModelShape` with other values, such as ``num_layers=8`` or ``attention="eager"``.

    Raises:
        InputError: no such model, or a value that is not allowed.
    """
    found = _found(source, changes)
    return found if not changes or _is_count(source) else changed(found, changes)


def cluster(gpu: str | None = None, *, gpus: int = 1, nodes: int = 1, host_memory: str | int | None = None) -> Cluster:
    """The machines.

    Args:
        gpu: a device of the catalogue (``"h100"``); None: of no known kind.
        gpus: devices of one node.
        nodes: nodes that are alike.
        host_memory: CPU memory of one node, in bytes or such as ``"1TB"``.

    Raises:
        InputError: no such device, or a size that is none.
    """
    size = parse_size(host_memory, "host_memory") if isinstance(host_memory, str) else host_memory
    device = None if gpu is None else accelerator(gpu)
    return Cluster(accelerator=device, gpus_per_node=gpus, num_nodes=nodes, host_memory_bytes=size)


def workload(
    *,
    sequence_length: int = 1024,
    micro_batch_size: int = 1,
    gradient_accumulation_steps: int = 1,
    precision: str = "bf16",
    optimizer: str = "adamw",
    activation_checkpointing: str = "none",
) -> Workload:
    """How a model is trained; see :class:`dsplan.workload.Workload`.

    Raises:
        InputError: a value that is not allowed.
    """
    return Workload(
        micro_batch_size=micro_batch_size,
        sequence_length=sequence_length,
        gradient_accumulation_steps=gradient_accumulation_steps,
        precision=parse_precision(precision),
        optimizer=parse_optimizer(optimizer),
        activation_checkpointing=activation_checkpointing,
    )


def plans(
    source: Model,
    machines: Cluster,
    job: Workload | None = None,
    *,
    strategy: str | None = None,
    ds_config: str | Path | None = None,
) -> tuple[Plan, ...]:
    """The plans to compare: every strategy, ``strategy`` alone, or what a DeepSpeed configuration says.

    Raises:
        InputError: no such strategy; or the file cannot be read, or has a setting that the formulas do not model.
    """
    from dsplan.strategies import find_plan, standard_plans

    job = job or workload()
    if ds_config is not None:
        from dsplan.dsconfig.read import read_ds_config

        if strategy is not None:
            raise InputError(f"strategy {strategy!r} and ds_config contradict each other; give one of them")
        read = read_ds_config(ds_config, world_size=machines.world_size, sequence_length=job.sequence_length)
        return (read.plan,)
    found = standard_plans(model(source), job)
    return found if strategy is None else (find_plan(found, strategy),)


def estimate(
    source: Model,
    machines: Cluster,
    job: Workload | None = None,
    *,
    strategy: str | None = None,
    ds_config: str | Path | None = None,
    explain: bool = False,
) -> Estimate:
    """The memory of each plan (:func:`plans`), phase by phase, and which to take: ``dsplan estimate``.

    Args:
        explain: fill in ``terms``, what the peak is made of.

    Returns:
        Sizes are bytes; ``estimate.plans`` has a :class:`dsplan.estimate.PlanEstimate` for each plan, and
        ``estimate.recommended`` is the name of one, or None.

    Raises:
        InputError: as :func:`plans`, or a model whose activations the formulas do not cover.
    """
    from dsplan.estimate import estimate as estimated

    shape = model(source)
    compared = plans(shape, machines, job, strategy=strategy, ds_config=ds_config)
    return estimated(shape, compared, machines, explain=explain)


def recommend(source: Model, machines: Cluster, job: Workload | None = None) -> PlanEstimate | None:
    """The fastest plan that fits, by rule; None where none does.

    Raises:
        InputError: as :func:`estimate`.
    """
    found = estimate(source, machines, job)
    return next((row for row in found.plans if row.plan.name == found.recommended), None)


def emit(
    source: Model, machines: Cluster, job: Workload | None = None, *, strategy: str | None = None
) -> dict[str, Any]:
    """The DeepSpeed configuration of the recommended strategy, or of ``strategy``: ``dsplan emit-config``.

    Raises:
        InputError: as :func:`estimate`; or nothing fits, so that there is nothing to recommend.
    """
    from dsplan.dsconfig.emit import emit as emitted

    shape = model(source)
    if strategy is not None:
        return emitted(plans(shape, machines, job, strategy=strategy)[0], shape, machines)
    row = recommend(shape, machines, job)
    if row is None:
        raise InputError("no strategy fits; use more or larger devices, a shorter sequence or a smaller micro batch")
    return emitted(row.plan, shape, machines)


def check(
    paths: str | Path | Sequence[str | Path],
    *,
    source: Model | None = None,
    machines: Cluster | None = None,
    sequence_length: int | None = None,
    consumer: str = "deepspeed",
) -> tuple[Finding, ...]:
    """What is wrong in DeepSpeed configurations: ``dsplan check``.

    Args:
        paths: files: JSON, Hjson, Markdown that shows them, or accelerate's YAML.
        source: the model, for the rules about sizes.
        machines: the machines, for the verdict.
        sequence_length: tokens of a sample, for the verdict.
        consumer: who hands the file to DeepSpeed: ``deepspeed``, ``hf``, ``accelerate`` or ``lightning``.

    Raises:
        InputError: a file cannot be opened. What a file says is a finding.
    """
    from dsplan.check.configuration import Run
    from dsplan.check.run import check_files

    run = Run(
        consumer=consumer,
        world_size=None if machines is None else machines.world_size,
        model=None if source is None else model(source),
        cluster=machines,
        sequence_length=sequence_length,
    )
    files = [paths] if isinstance(paths, (str, Path)) else list(paths)
    return check_files([Path(path) for path in files], run).findings


def fit(
    source: Model, machines: Cluster, job: Workload | None = None, *, what: str = "micro-batch"
) -> tuple[Largest, ...]:
    """The largest ``what`` that fits, for each strategy: ``micro-batch``, ``sequence`` or ``model``.

    Raises:
        InputError: as :func:`estimate`; ``machines`` name no device; or ``what`` is none of them.
    """
    from dsplan.errors import choice
    from dsplan.search.fit import WHAT, largest

    shape = model(source)
    return largest(choice("what", what, WHAT), shape, plans(shape, machines, job), machines)


def _found(source: Model, changes: Mapping[str, Any]) -> ModelShape:
    if isinstance(source, ModelShape):
        return source
    if isinstance(source, Mapping):
        return shape_from_config(dict(source), where="the configuration")
    name = str(source).strip()
    if isinstance(source, str):
        if name.casefold() in map(str.casefold, (*preset_names(), *decoder_names())):
            return preset(name)
        if _is_count(source):
            return infer_shape(parse_count(name), changes).shape
    known = published_name(name) if isinstance(source, str) else None
    if known is None and (
        isinstance(source, Path) or Path(name).exists() or "/" in name or Path(name).suffix == ".json"
    ):
        return read_model(name)
    return preset(known or name)  # which says what there is


def _is_count(source: Model) -> bool:
    if not isinstance(source, str) or source.strip().casefold() in map(str.casefold, preset_names()):
        return False
    try:
        parse_count(source.strip())
    except InputError:
        return False
    return True
