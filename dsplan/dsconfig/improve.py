"""Improving a configuration that exists: what the user decided stays, what does not suit the model is put right.

The order of strategies is that of :mod:`dsplan.recommend`: no offload before offload, less communication before more.
A change is made only if it needs no more memory, except where the configuration would not run as it is or a faster
strategy fits; so improving twice changes nothing more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from dsplan.dsconfig.auto import AUTO
from dsplan.dsconfig.batch import ACCUMULATION, MICRO_BATCH, TRAIN_BATCH
from dsplan.dsconfig.buckets import with_nvme_path
from dsplan.dsconfig.document import load_document
from dsplan.dsconfig.edit import copied, drop_key, set_key, value_at, zero_key
from dsplan.dsconfig.emit import NVME_PATH, emit
from dsplan.dsconfig.measured import EstimateRow, Row
from dsplan.dsconfig.old_names import renames
from dsplan.dsconfig.optimizer_section import UNTESTED
from dsplan.dsconfig.read import DsConfig
from dsplan.dsconfig.sizing import resized
from dsplan.dsconfig.stages import stages_of
from dsplan.errors import InputError
from dsplan.hardware import Cluster
from dsplan.model import ModelShape
from dsplan.plan import Plan
from dsplan.workload import Workload
from dsplan.zero import ZeroConfig

#: Verdicts of :mod:`dsplan.estimate`.
FITS, TIGHT = "fits", "tight"
#: ZeRO fields that say how, not how much: a change of strategy keeps the user's.
_SWITCHES = (
    "contiguous_gradients",
    "reduce_scatter",
    "allgather_partitions",
    "overlap_comm",
    "round_robin_gradients",
    "memory_efficient_linear",
    "stage3_model_persistence_threshold",
    "stage3_max_live_parameters",
    "stage3_max_reuse_distance",
)
_OFFLOAD = ("offload_optimizer", "offload_param")
_ALL = (0, 1, 2, 3)
_ZERO = "zero_optimization"


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One key that is changed.

    Attributes:
        key: dotted.
        before: what the file has; None where it has nothing, and DeepSpeed's default holds.
        after: what it gets; None where the key goes.
        why: in a sentence.
        device_before: allocated peak of the worst rank in bytes without this change; None where the change
            has nothing to do with memory, or belongs to the one above it.
        device_after: the same with it.
        host_before, host_after: the same of a node's CPU memory.
    """

    key: str
    before: Any
    after: Any
    why: str
    device_before: int | None = None
    device_after: int | None = None
    host_before: int | None = None
    host_after: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Improvement:
    """A configuration as it was and as it should be.

    Attributes:
        path: the file that was read; it is not written.
        document: the improved configuration, as the file should be; ``"auto"`` stays.
        resolved: what DeepSpeed gets of it: without ``"auto"``, and with all three batch sizes.
        changes: what is different, in the order in which it was changed.
        plan: what the improved configuration says.
        strategy: the strategy that was taken in place of the user's; None when that one stays.
        before: estimate of the file as it is.
        after: estimate of the improved configuration.
        notes: what there is to say beside, such as that nothing fits.
    """

    path: Path
    document: Mapping[str, Any]
    resolved: Mapping[str, Any]
    changes: tuple[Change, ...]
    plan: Plan
    strategy: str | None
    before: Row
    after: Row
    notes: tuple[str, ...]


#: Reads a document as the file at the path would be read, with the same options.
Reader = Callable[[Mapping[str, Any]], DsConfig]
#: The strategies for a workload, fastest first (:func:`dsplan.strategies.standard_plans`).
Strategies = Callable[[Workload], Sequence[Plan]]


def improve(
    path: Path,
    model: ModelShape,
    cluster: Cluster,
    *,
    read: Reader,
    estimate_row: EstimateRow,
    strategies: Strategies,
    nvme_path: str = NVME_PATH,
) -> Improvement:
    """The configuration in ``path``, improved for ``model`` on ``cluster``.

    Deprecated keys get their present names; the strategy changes only if it does not fit, or a faster one fits;
    buckets and thresholds that were sized for another model get this one's; keys that the stage does not read
    go. Everything else stays as it is, ``"auto"`` too.

    Args:
        path: the file.
        model: the model that it is for.
        cluster: the machines; without a device the strategy is kept, since nothing can be said to fit.
        read: reads a document as this file is read.
        estimate_row: the estimate of one plan on ``cluster``.
        strategies: what the strategy can be changed to.
        nvme_path: folder for a strategy that offloads to NVMe.

    Raises:
        InputError: the file cannot be read or planned; the message names the key.
    """
    given = load_document(path)
    found = read(given)
    work = _Work(copied(given), found.plan, model, cluster, estimate_row)
    before = work.row(found.plan)
    for key, old, new, why in renames(work.document):
        work.changes.append(Change(key=key, before=old, after=new, why=why))
    strategy = _choose(work, strategies, nvme_path)
    _resize(work)
    _drop_ignored(work)
    written = read(work.document)
    again = written.plan
    if again != replace(work.plan, name=again.name):
        raise InputError(f"{path}: the improved configuration is read as another plan; please report this file")
    return Improvement(
        path=path,
        document=work.document,
        resolved=_resolved(written),
        changes=tuple(work.changes),
        plan=again,
        strategy=strategy,
        before=before,
        after=work.row(again),
        notes=tuple(work.notes),
    )


def _resolved(config: DsConfig) -> dict[str, Any]:
    sizes = {
        TRAIN_BATCH: config.train_batch_size,
        MICRO_BATCH: config.workload.micro_batch_size,
        ACCUMULATION: config.workload.gradient_accumulation_steps,
    }
    return {**config.document, **sizes}


class _Work:
    """The document and its plan under way."""

    def __init__(
        self, document: dict[str, Any], plan: Plan, model: ModelShape, cluster: Cluster, estimate_row: EstimateRow
    ) -> None:
        self.document = document
        self.plan = plan
        self.model = model
        self.cluster = cluster
        self.changes: list[Change] = []
        self.notes: list[str] = []
        self._estimate_row = estimate_row
        self._rows: dict[Plan, Row] = {}

    def row(self, plan: Plan) -> Row:
        key = replace(plan, name=self.plan.name)
        if key not in self._rows:
            self._rows[key] = self._estimate_row(key)
        return self._rows[key]

    def resized(self, plan: Plan) -> Iterator[tuple[str, str, Plan]]:
        """(field, why, plan with it) of every size of ``plan`` that suits another model, one after the other."""
        automatic = [field for field in _names(ZeroConfig) if self.value(field) == AUTO]
        return resized(plan, self.model, self.cluster.world_size, self.row, keep=automatic)

    def value(self, field: str) -> Any:
        return value_at(self.document, zero_key(self.document, field))

    def take(self, plan: Plan, why: str) -> None:
        """Write the ZeRO section of ``plan``; the first key that changes bears the difference in memory."""
        old, new = self.row(self.plan), self.row(plan)
        first = True
        for key, value in self._differences(self.plan.zero, plan.zero, emit(plan, self.model, self.cluster)):
            change = Change(
                key=key,
                before=value_at(self.document, key),
                after=value,
                why=why if first else "goes with the change above",
                device_before=old.device.peak_bytes if first else None,
                device_after=new.device.peak_bytes if first else None,
                host_before=old.host.bytes_per_node if first else None,
                host_after=new.host.bytes_per_node if first else None,
            )
            self.changes.append(change)
            first = False
            if value is None:
                drop_key(self.document, key)
            else:
                set_key(self.document, key, value)
        self.plan = plan

    def _differences(self, old: ZeroConfig, new: ZeroConfig, emitted: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
        names = _names(ZeroConfig)
        for field in sorted(names, key=lambda name: name not in ("stage", *_OFFLOAD)):
            before, after = getattr(old, field), getattr(new, field)
            if before == after:
                continue
            if field not in _OFFLOAD:
                if new.stage not in (stages_of(field) or _ALL):
                    continue  # what the stage does not read goes later
                yield zero_key(self.document, field), after
            elif after.device == "none":
                yield f"{_ZERO}.{field}", None
            elif before.device != after.device:
                yield f"{_ZERO}.{field}", emitted[_ZERO][field]
            else:
                for name in _names(type(after)):
                    if getattr(before, name) != getattr(after, name):
                        yield f"{_ZERO}.{field}.{name}", getattr(after, name)
        if new.stage > 0 and self.plan.workload.optimizer in UNTESTED and "optimizer" in self.document:
            key = "zero_allow_untested_optimizer"
            if self.document.get(key) is not True:
                yield key, True
        swapped = "nvme" in (old.offload_optimizer.device, old.offload_param.device)
        if "aio" in emitted and "aio" not in self.document and not swapped:
            yield "aio", emitted["aio"]


def _choose(work: _Work, strategies: Strategies, nvme_path: str) -> str | None:
    """The strategy to take in place of the user's, or None to keep it."""
    if work.cluster.accelerator is None or work.cluster.accelerator.usable_bytes is None:
        work.notes.append("no device was named, so the strategy is kept: name one with --gpu")
        return None
    mine = work.plan
    kind = mine.workload.activation_checkpointing
    everything = list(_candidates(mine, strategies(mine.workload), nvme_path))
    candidates = [plan for plan in everything if plan.workload.activation_checkpointing == kind]
    faster = [plan for plan in candidates if _order(plan.zero) < _order(mine.zero)]
    taken = _first(work, faster, FITS)
    if taken is not None:
        work.take(taken, f"{taken.name} is faster and fits")
        return taken.name
    *_, kept = (mine, *(plan for _, _, plan in work.resized(mine)))
    row = work.row(kept)
    if row.verdict in (FITS, TIGHT):
        return None
    slower = [plan for plan in candidates if plan not in faster]
    taken = _first(work, slower, FITS) or _first(work, slower, TIGHT)
    if taken is not None:
        verb = "fits" if work.row(taken).verdict == FITS else "may fit"
        work.take(taken, f"it does not fit: {row.reason}; {taken.name} is the fastest that {verb}")
        return taken.name
    work.notes.append(f"nothing fits with these batch sizes, so the strategy is kept: {row.reason}")
    checkpointed = _first(work, [plan for plan in everything if plan not in candidates], FITS)
    if checkpointed is not None:
        work.notes.append(f"{checkpointed.name} would fit: the script has to checkpoint its blocks")
    return None


def _first(work: _Work, plans: Sequence[Plan], verdict: str) -> Plan | None:
    return next((plan for plan in plans if work.row(plan).verdict == verdict), None)


def _candidates(mine: Plan, plans: Sequence[Plan], nvme_path: str) -> Iterator[Plan]:
    """The strategies with the user's switches, and with the user's offload sections where the device is the same."""
    for plan in plans:
        zero = replace(plan.zero, **{name: getattr(mine.zero, name) for name in _SWITCHES})
        for name in _OFFLOAD:
            section = getattr(mine.zero, name)
            if section.device == getattr(zero, name).device != "none":
                if name == "offload_optimizer" and zero.stage < 3:
                    section = replace(section, ratio=1.0)  # a part is offloaded at stage 3 only
                changed: dict[str, Any] = {name: section}
                zero = replace(zero, **changed)
        zero = _without_ignored(with_nvme_path(zero, nvme_path))
        yield replace(mine, name=plan.name, zero=zero, workload=plan.workload)


def _order(zero: ZeroConfig) -> tuple[int, int]:
    """Smaller is faster: how much is offloaded how far, then the stage."""
    devices = (zero.offload_optimizer.device, zero.offload_param.device)
    if "nvme" in devices:
        return 3, zero.stage
    return devices.count("cpu"), zero.stage


def _resize(work: _Work) -> None:
    for _, why, plan in list(work.resized(work.plan)):
        work.take(plan, why)


def _drop_ignored(work: _Work) -> None:
    """Keys that the stage does not read; and what only a boolean ``zero_optimization`` reads."""
    section, stage = work.document.get(_ZERO), work.plan.zero.stage
    for key in list(section) if isinstance(section, dict) else []:
        stages = stages_of(key)
        if stages is not None and stage not in stages:
            _drop(work, f"{_ZERO}.{key}", f"stage {stage} does not read it")
    if isinstance(section, dict) and "allgather_size" in work.document:
        _drop(work, "allgather_size", "read only where zero_optimization is true")
    work.plan = replace(work.plan, zero=_without_ignored(work.plan.zero))


def _drop(work: _Work, key: str, why: str) -> None:
    work.changes.append(Change(key=key, before=value_at(work.document, key), after=None, why=why))
    drop_key(work.document, key)


def _without_ignored(zero: ZeroConfig) -> ZeroConfig:
    """``zero`` with DeepSpeed's defaults for what its stage does not read."""
    default = ZeroConfig()
    ignored = [name for name in _names(ZeroConfig) if zero.stage not in (stages_of(name) or _ALL)]
    return replace(zero, **{name: getattr(default, name) for name in ignored})


def _names(kind: Any) -> list[str]:
    return [field.name for field in fields(kind)]
