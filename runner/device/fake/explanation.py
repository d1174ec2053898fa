"""What was live at the peak of every phase, by cause: the dry run's answer to "where does this byte come from?"."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from runner.device.fake.memory import Memory, Peak

INIT = "init"  # the phase before the first step


class Explanation:
    """Notes the peak of each phase as the run goes on, and adds up afterwards what was live then."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._peaks: dict[tuple[str, str], Peak] = {}
        self._step = 0

    def step_of(self, phase: str) -> str:
        """The step that a phase belongs to which ends now: ``init``, or the step's index as text."""
        return INIT if phase == INIT else str(self._step)

    def phase_ended(self, name: str) -> None:
        """Of a phase that comes several times in a step (micro batches), the highest peak and the last level count."""
        key = (self.step_of(name), name)
        peak = self._memory.peak()
        earlier = self._peaks.get(key, peak)
        highest = max(earlier, peak, key=lambda found: found.size_bytes)
        self._peaks[key] = replace(
            highest,
            tensor_peak_bytes=max(earlier.tensor_peak_bytes, peak.tensor_peak_bytes),
            tensor_level_bytes=peak.tensor_level_bytes,
        )

    def step_ended(self) -> None:
        self._step += 1

    def to_document(self) -> list[dict[str, Any]]:
        """The phases in order of time, each with its terms, the largest first."""
        live = self._memory.live_at(peak.event for peak in self._peaks.values())
        return [
            {
                "step": step,
                "phase": phase,
                "bytes": peak.size_bytes,
                "tensor_peak_bytes": peak.tensor_peak_bytes,
                "tensor_level_bytes": peak.tensor_level_bytes,
                "terms": [
                    {
                        "cause": _cause(cause.operator, cause.function),
                        "where": cause.where,
                        "bytes": size,
                        "count": count,
                    }
                    for cause, (size, count) in sorted(live[peak.event].items(), key=lambda item: -item[1][0])
                ],
            }
            for (step, phase), peak in self._peaks.items()
        ]


def _cause(operator: str, function: str) -> str:
    return f"{operator} in {function}" if function else operator
