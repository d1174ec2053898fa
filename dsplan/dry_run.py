"""DryRun: what the record of a dry run says beyond what a real run can measure.

A dry run is the real engine over fake tensors on a pretend device: it knows who asked for every byte.
Every size is an int of bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

INIT = "init"


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocatorRecord:
    """How the replayed allocator did.

    Attributes:
        settings: text of PYTORCH_CUDA_ALLOC_CONF that it was given; empty: torch's defaults.
        num_alloc_retries: how often it gave back its cache to go on.
        num_segments: segments that it held at the end.
    """

    settings: str
    num_alloc_retries: int
    num_segments: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A question that only data can answer (``.item()``, ``bool()``), the answer by rule, and how often."""

    question: str
    where: str
    answer: str
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PretendHost:
    """Peaks of the host's memory that a real rank would show, by kind; ``process_bytes`` is its base.

    ``pinned_bytes`` is what torch's pinned allocator holds, ``locked_bytes`` what is locked outside of it (the buffers
    of NVMe offload); 0 in records from before they were told apart, in which it is pageable.
    """

    pageable_bytes: int
    pinned_bytes: int
    process_bytes: int
    locked_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PeakTerm:
    """Bytes that were live at a peak: what for, which line asked for them, and in how many storages."""

    cause: str
    where: str
    bytes: int
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Peak:
    """What was live at the peak of one phase; ``step`` is ``init`` or the step's index as text.

    ``bytes`` is what the allocator counts. ``tensor_peak_bytes`` and ``tensor_level_bytes`` are the phase's peak and
    its level at the end without what the allocator could not split off: requests, rounded up to 512 bytes each.
    """

    step: str
    phase: str
    bytes: int
    tensor_peak_bytes: int
    tensor_level_bytes: int
    terms: tuple[PeakTerm, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DryRun:
    """What a dry run says beyond a measurement.

    Attributes:
        target: the device that it stands for: a name of the catalogue, ``cpu``, or ``measured``.
        num_events: storages allocated and freed.
        seconds: how long it took.
        answers: how questions about data were answered.
        early_release: collectives gave their tensors back as early as they can, at the next one; else at their wait.
        peaks: of every phase.
    """

    target: str
    num_events: int
    seconds: float
    allocator: AllocatorRecord
    answers: tuple[Answer, ...]
    host: PretendHost
    peaks: tuple[Peak, ...]
    early_release: bool = False

    @property
    def num_answers(self) -> int:
        """How often a question about data was answered by rule."""
        return sum(answer.count for answer in self.answers)

    @property
    def worst_peak(self) -> Peak | None:
        """The highest peak of the steps; of the initialisation only where no step has one; None without any."""
        candidates = [peak for peak in self.peaks if peak.step != INIT] or self.peaks
        return max(candidates, key=lambda peak: peak.bytes, default=None)

    def to_document(self) -> dict[str, Any]:
        """The ``dry_run`` of a rank's record, valid under ``schemas/measurement.schema.json``."""
        return {
            **asdict(self),
            "answers": [asdict(answer) for answer in self.answers],
            "peaks": [{**asdict(peak), "terms": [asdict(term) for term in peak.terms]} for peak in self.peaks],
        }


def dry_run_from(document: Mapping[str, Any]) -> DryRun:
    """The dry run of a valid record."""
    return DryRun(
        target=document["target"],
        num_events=document["num_events"],
        seconds=document["seconds"],
        allocator=AllocatorRecord(**document["allocator"]),
        answers=tuple(Answer(**answer) for answer in document["answers"]),
        host=PretendHost(**document["host"]),
        peaks=tuple(
            Peak(**{**peak, "terms": tuple(PeakTerm(**term) for term in peak["terms"])}) for peak in document["peaks"]
        ),
        early_release=document.get("early_release", False),
    )
