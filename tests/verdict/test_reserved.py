"""Reserved memory on a card with room: the replay and its bound against what was measured."""

from __future__ import annotations

from statistics import median

from tests.verdict.reserved import DECODERS, DOCUMENT, MARKER, MINGPT, SHARED, Held, held, recorded, summary

#: Those of a tenth of a second each; ``python -m tests.verdict.reserved`` takes them all.
QUICK = ("gpt2-z", "1.7B-z3-offload-n", "odd", "heads", "width", "453M", "qwen2.5", "phi")


def _quick() -> list[Held]:
    return [held(run) for run in recorded((MINGPT, DECODERS, SHARED)) if run.name.startswith(QUICK)]


def test_the_bound_is_above_every_record_and_near_it() -> None:
    found = _quick()
    assert len(found) >= 30
    assert len({each.recorded.kind for each in found}) == 3
    assert min(found, key=lambda each: each.bound).bound >= 0
    assert median(each.bound for each in found) <= 0.15
    assert abs(median(each.expected for each in found)) < 0.001


def test_the_document_has_every_kind_of_run() -> None:
    runs = list(recorded())
    text = DOCUMENT.read_text(encoding="utf-8").partition(f"<!-- {MARKER} -->")[2].partition(f"<!-- /{MARKER} -->")[0]
    assert all(f"| {kind} | " in text for kind in {run.kind for run in runs}), (
        "python -m tests.verdict.reserved --write"
    )
    assert min(run.reserved_bytes for run in runs) > 0


def test_the_summary_has_the_lowest_and_the_median() -> None:
    run = next(iter(recorded((MINGPT,))))
    rows = [Held(recorded=run, expected=share, bound=share + 0.1) for share in (-0.03, 0.0, 0.01)]
    lines = summary(rows)
    assert "| all | 3 | +0.00 %, -3.00 %, +1.00 % | +10.00 %, +7.00 %, +11.00 % |" in lines
    assert lines[-1] == f"Nearest: {run.name}, whose bound is 7.00 % above what it reserved."
