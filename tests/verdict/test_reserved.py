"""Reserved memory on a card with room: the replay and its bound against what was measured."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import median

from dsplan.catalogue import accelerator
from dsplan.verdict.bound import reserved_bound
from dsplan.verdict.candidates import candidates
from tests.gpu.cases import SETS

MEASURED = Path(__file__).parents[1] / "data" / "measured"
CASES = {case.name: case for cases in SETS.values() for case in cases}
#: Those of a tenth of a second each; ``python -m tests.verdict.test_reserved`` takes them all.
QUICK = ("gpt2-z", "odd", "heads", "width")


def _above(name: str) -> float:
    """By which share of the measured reserved memory the bound is above it."""
    ranks = json.loads((MEASURED / f"{name}.json").read_text(encoding="utf-8"))["ranks"]
    phases = [rank["init"] for rank in ranks]
    phases += [phase for rank in ranks for step in rank["steps"] for phase in step["phases"].values()]
    measured = max(phase["peak_reserved_bytes"] or 0 for phase in phases)
    case = CASES[name]
    found = candidates(case.model_shape(), case.plan(), case.gpus, accelerator("h200"))
    return reserved_bound(found.reserved_bytes) / measured - 1


def _all(*, quick: bool) -> dict[str, float]:
    names = sorted(path.stem for path in MEASURED.glob("*.json") if path.stem in CASES)
    return {name: _above(name) for name in names if not quick or name.startswith(QUICK)}


def test_the_bound_is_above_every_record_and_near_it() -> None:
    above = _all(quick=True)
    assert len(above) >= 25
    assert min(above.values()) >= 0, above
    assert median(above.values()) <= 0.15


def main() -> None:
    above = _all(quick=False)
    lines = [f"{name:42} {100 * share:+6.2f} %" for name, share in above.items()]
    lowest, highest, middle = min(above.values()), max(above.values()), median(above.values())
    lines.append(f"{len(above)} records: {100 * lowest:+.2f} % to {100 * highest:+.2f} %, median {100 * middle:+.2f} %")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
