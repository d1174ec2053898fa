"""Rows: what an estimate says of each plan."""

from __future__ import annotations

from dataclasses import dataclass

from dsplan.hardware import Cluster
from dsplan.ledger import MemoryTerm, PhaseMemory
from dsplan.model import ModelShape
from dsplan.plan import Plan
from dsplan.verdict.judge import Pressed
from dsplan.verdict.remedies import Remedy

#: What a verdict can rest on: the allocated peak alone, which is far from what the device offers; the closed bound on
#: fragmentation, where no allocator is replayed; a replay of the formulas' requests; a dry run of the real engine.
BY_PEAK, BY_BOUND, BY_REPLAY, BY_DRY_RUN = "peak", "bound", "replay", "dry run"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceEstimate:
    """Memory of the worst rank's device, in bytes as torch counts allocated memory.

    Attributes:
        phases: ``init`` and the steady state's ``forward``, ``backward``, ``step``.
        first_step: ``forward``, ``backward``, ``step`` of the first step, where optimizer states
            are not there yet.
        peak_bytes: the maximum over initialisation and all steps.
        peak_phase: the phase of that peak.
        peak_step: ``init``, ``first step``, ``step 2``, ``step 3`` or ``steady state``.
        peak_moment: the moment within the phase ("backward of block 11").
        steps_peak_bytes: the maximum over the steps, initialisation apart.
        overhead_bytes: device memory outside the allocator (context, communication).
        device_bytes: what the driver shows at least at the peak: allocated and overhead.
        device_bound_bytes: the same with the fragmentation that a run under pressure has needed; ``fits`` means this.
    """

    phases: dict[str, PhaseMemory]
    first_step: dict[str, PhaseMemory]
    peak_bytes: int
    peak_phase: str
    peak_step: str
    peak_moment: str
    steps_peak_bytes: int
    overhead_bytes: int
    device_bytes: int
    device_bound_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class HostEstimate:
    """Host memory in bytes, at its peak.

    Attributes:
        pinned_bytes, pageable_bytes: of a rank.
        bytes_per_node: of all ranks of a node with their processes, as expected.
        bound_bytes_per_node: the same with what malloc may keep of a model that was built on the host.
        kept_bytes: what it may keep of a rank's.
        locked_bytes: what a rank locks with mlock(2), outside what CUDA pins.
        disk_bytes_per_node: folders that are swapped to (``nvme_path``), and the bytes of the files there.
    """

    pinned_bytes: int
    pageable_bytes: int
    bytes_per_node: int
    bound_bytes_per_node: int = 0
    kept_bytes: int = 0
    locked_bytes: int = 0
    disk_bytes_per_node: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanEstimate:
    """One row of the table.

    Attributes:
        verdict: ``fits``; ``tight`` (it fits as expected, without the margin that ``fits`` asks for);
            ``does not fit``; ``unknown`` (no device was named).
        reason: why it does not fit: which memory is short, by how much, at which moment.
        headroom_bytes: what the device offers less what the run needs; negative when short. The need is the least that
            a replay of the allocator lives with; without a replay the allocated peak.
        judged_by: what the verdict rests on, one of the names that begin with ``BY_``.
        remedies: what would help where it does not fit or is tight, cheapest first (when judged closely).
        pressed: what the replays found; None where there was none to make.
        fits_on: catalogued accelerators that it fits (always filled).
        max_micro_batch_size: the largest micro batch that fits; 0 when none does, None when unknown.
        max_sequence_length: the longest sequence that fits, of at most the model's positions; 0 when none does. None
            when it was not looked for.
        terms: what is live at the peak, largest first (only when explained).
    """

    plan: Plan
    device: DeviceEstimate
    host: HostEstimate
    verdict: str
    reason: str
    headroom_bytes: int | None
    fits_on: tuple[str, ...]
    max_micro_batch_size: int | None
    terms: tuple[MemoryTerm, ...] = ()
    max_sequence_length: int | None = None
    judged_by: str = BY_PEAK
    remedies: tuple[Remedy, ...] = ()
    pressed: Pressed | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """All plans for one model on one cluster; ``recommended`` is a plan's name or None."""

    model: ModelShape
    cluster: Cluster
    plans: tuple[PlanEstimate, ...]
    recommended: str | None
    recommendation_reason: str
