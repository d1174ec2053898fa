"""The published cases: what others measured, on what and how, as data (``cases.json``) and as types.

Every figure in that file was published by somebody; which of them can be trusted, and why not, is said beside it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from functools import cache
from importlib.resources import files
from typing import Any

from dsplan.catalogue import accelerator
from dsplan.hardware import Cluster
from dsplan.model import ModelShape
from dsplan.modelfile import shape_from_config
from dsplan.plan import Plan
from dsplan.replay.tensors import TENSORS, Tensors
from dsplan.workload import Workload
from dsplan.zero import OffloadOptimizer, OffloadParam, ZeroConfig

#: What can be asked of a case; see ``dsplan.replay.verdicts``.
JUDGES = ("peak", "level", "fit", "refuse", "duplicate", "phases", "shown")


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A model that was trained.

    Attributes:
        name: as it is printed.
        num_parameters: the count, as published or as the published shape makes it.
        shape: where dsplan has formulas for it; else None.
        tensors: where only its parameters and buffers are known.
    """

    name: str
    num_parameters: int
    shape: ModelShape | None
    tensors: Tensors | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """Who published it, on what it ran, and what the figure is of.

    Attributes:
        accelerator: catalogue name of the card; empty where it is not certain or not needed.
        host_memory_bytes: of the node; None when not stated.
        unit_bytes: bytes of the unit that was published.
    """

    name: str
    source: str
    hardware: str
    software: str
    metric: str
    accelerator: str = ""
    host_memory_bytes: int | None = None
    unit_bytes: int = 1024**2


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """The figures of one run; None where none was given.

    Attributes:
        peak_bytes: the highest allocated memory in the setup's window.
        level_bytes: allocated between steps.
        fits: whether it ran; None when that is not what was published.
        host_bytes: host memory in use, of the whole machine.
        device_bytes: what nvidia-smi showed.
        table_mib: Gaudi's phases, a row a step: before and after forward, before and after backward, before and
            after the step, and the highest of them.
        epoch_seconds: time of an epoch, which gives a copied row away.
    """

    peak_bytes: int | None = None
    level_bytes: int | None = None
    fits: bool | None = None
    host_bytes: int | None = None
    device_bytes: int | None = None
    table_mib: tuple[tuple[int, ...], ...] = ()
    epoch_seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One published row.

    Attributes:
        judge: which question it answers, one of :data:`JUDGES`.
        standing: how far it can be trusted: usable, usable with caution, rounded, doubtful, wrong, ...
        zero: the ``zero_optimization`` section; None for torch's DDP.
        remark: what has to be known of it.
        of: the row that it repeats.
        scaled_from: the row whose published peak is scaled where the formulas do not know the machine.
    """

    id: str
    judge: str
    standing: str
    setup: Setup
    model: Subject
    world_size: int
    micro_batch_size: int
    sequence_length: int
    precision: str
    activation_checkpointing: str
    zero: ZeroConfig | None
    published: Published
    remark: str
    of: str = ""
    scaled_from: str = ""

    @property
    def plan(self) -> Plan:
        """What it trained with, as dsplan plans it."""
        return Plan(
            name=self.id,
            zero=self.zero or ZeroConfig(),
            ddp=self.zero is None,
            workload=Workload(
                micro_batch_size=self.micro_batch_size,
                sequence_length=self.sequence_length,
                precision=self.precision,
                activation_checkpointing=self.activation_checkpointing,
            ),
        )

    @property
    def cluster(self) -> Cluster:
        """The machine: one node; without a card where none is certain."""
        return Cluster(
            accelerator=accelerator(self.setup.accelerator) if self.setup.accelerator else None,
            gpus_per_node=self.world_size,
            host_memory_bytes=self.setup.host_memory_bytes,
        )

    @property
    def technique(self) -> str:
        """``ddp``, ``zero3-offload``, ...; with ``-ckpt`` where activations are recomputed."""
        name = "ddp" if self.zero is None else f"zero{self.zero.stage}"
        if self.zero is not None and self.zero.offloads_optimizer:
            name += "-offload-param" if self.zero.offloads_parameters else "-offload"
        return name if self.activation_checkpointing == "none" else f"{name}-ckpt"


@cache
def cases() -> tuple[Case, ...]:
    """Every published row, in the file's order."""
    document = published_document()
    subjects = {name: _subject(name, entry) for name, entry in document["models"].items()}
    setups = {name: Setup(name=name, **entry) for name, entry in document["setups"].items()}
    return tuple(_case(entry, subjects, setups) for entry in document["cases"])


def case(identifier: str) -> Case:
    """The row of that name; KeyError when there is none."""
    return {one.id: one for one in cases()}[identifier]


@cache
def subjects() -> tuple[Subject, ...]:
    """Every model of the published rows."""
    return tuple(_subject(name, entry) for name, entry in published_document()["models"].items())


@cache
def published_document() -> dict[str, Any]:
    """The data as it is in the file."""
    text = (files("dsplan") / "replay" / "cases.json").read_text(encoding="utf-8")
    document: dict[str, Any] = json.loads(text)
    return document


def _subject(name: str, entry: dict[str, Any]) -> Subject:
    config = entry.get("config")
    return Subject(
        name=name,
        num_parameters=entry["num_parameters"],
        shape=None if config is None else shape_from_config(config, where=f"published model {name}", name=name),
        tensors=TENSORS[entry["tensors"]]() if "tensors" in entry else None,
    )


def _case(entry: dict[str, Any], subjects: dict[str, Subject], setups: dict[str, Setup]) -> Case:
    published = dict(entry["published"])
    if "table_mib" in published:
        published["table_mib"] = tuple(tuple(row) for row in published["table_mib"])
    known = {field.name for field in fields(Case)}
    return Case(
        **{key: value for key, value in entry.items() if key in known - {"setup", "model", "zero", "published"}},
        setup=setups[entry["setup"]],
        model=subjects[entry["model"]],
        zero=None if entry["zero"] is None else _zero(entry["zero"]),
        published=Published(**published),
    )


def _zero(section: dict[str, Any]) -> ZeroConfig:
    offloads = {"offload_optimizer": OffloadOptimizer, "offload_param": OffloadParam}
    return ZeroConfig(**{key: offloads[key](**value) if key in offloads else value for key, value in section.items()})
