"""The formulas and the dry run of transformers' decoders against records of H200 GPUs."""

from __future__ import annotations

import statistics

from tests.families.records import judged

MEDIAN_PERCENT = 1.0
WORST_PERCENT = 3.0
#: What a phase may be off at most; beyond it a cause has to be found (docs/models.md).
PHASE_PERCENT = 0.5


def test_the_records_are_those_that_were_asked_for() -> None:
    found = judged()
    assert len(found) >= 12
    assert {each.record.configuration.world_size for each in found} >= {1, 4}
    assert {each.record.configuration.workload.sequence_length for each in found} >= {2048, 4096}
    assert {each.record.configuration.model["model_type"] for each in found} >= {
        "llama", "qwen2", "qwen3", "gemma", "mixtral",
    }  # fmt: skip
    assert all(each.record.device.kind == "cuda" for each in found)


def test_peaks_are_within_what_was_asked_for() -> None:
    for comparisons in ([each.formulas for each in judged()], [each.dry_run for each in judged()]):
        errors = [abs(each.peak_allocated.error_percent or 0) for each in comparisons]
        assert statistics.median(errors) <= MEDIAN_PERCENT
        assert max(errors) <= WORST_PERCENT


def test_every_phase_is_near() -> None:
    beyond = [
        (each.name, phase.step, phase.phase, phase.peak.error_percent)
        for each in judged()
        for comparison in (each.formulas, each.dry_run)
        for phase in comparison.phases
        if abs(phase.peak.error_percent or 0) > PHASE_PERCENT
    ]
    assert beyond == []
