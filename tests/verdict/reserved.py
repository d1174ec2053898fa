"""Reserved memory where there is room, against every record of a card: ``python -m tests.verdict.reserved [--write]``.

What ``estimate`` expects (the replay) and its upper bound, of the recorded runs of ``verify`` and of the rungs of the
ladders that never had to give back their cache. ``--write`` puts the summary into docs/verdict.md.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from dsplan.catalogue import accelerator
from dsplan.files import write_text
from dsplan.verdict.bound import reserved_bound
from dsplan.verdict.candidates import candidates
from tests.gpu.cases import SETS, Case
from tests.gpu.hf_cases import HF
from tests.gpu.ladder_settings import SETTINGS
from tests.gpu.shared_cases import SHARED_4, SHARED_8, SHARED_8_ON_4
from tests.ladder_report import LIVED, RECORDS
from tests.regret import written

DATA = Path(__file__).parents[1] / "data"
DOCUMENT = DATA.parents[1] / "docs" / "verdict.md"
MARKER = "reserved"
#: Of a run that was made again, what follows the name of its case.
_AGAIN = re.compile("-again|-150-steps")
MINGPT, DECODERS, SHARED, RUNGS = "minGPT", "transformers' decoders", "ranks that share a card", "rungs of the ladders"


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """One run: bytes that the allocator of its worst rank reserved at most."""

    kind: str
    name: str
    case: Case
    reserved_bytes: int
    allocator: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What is said of a run, as shares of what it reserved."""

    recorded: Recorded
    expected: float
    bound: float


def recorded(kinds: Sequence[str] = (MINGPT, DECODERS, SHARED, RUNGS)) -> Iterator[Recorded]:
    """Every record of a run on a card."""
    if MINGPT in kinds:
        cases = {case.name: case for found in SETS.values() for case in found}
        for path in sorted((DATA / "measured").glob("*.json")) + sorted((DATA / "between").glob("*.json")):
            case = cases.get(path.stem) or cases.get(_AGAIN.sub("", path.stem))
            if case is not None:
                reserved = _reserved(json.loads(path.read_text(encoding="utf-8")))
                yield Recorded(kind=MINGPT, name=path.stem, case=case, reserved_bytes=reserved)
    sharing = {case.name: case for case in (*SHARED_4, *SHARED_8, *SHARED_8_ON_4)}
    if DECODERS in kinds:
        decoders = {case.name: case for case in HF} | sharing
        for each in json.loads((DATA / "hf_records.json").read_text(encoding="utf-8")):
            reserved = _reserved(each["record"])
            yield Recorded(kind=DECODERS, name=each["case"], case=decoders[each["case"]], reserved_bytes=reserved)
    if SHARED in kinds:
        for name, record in json.loads((DATA / "shared_records.json").read_text(encoding="utf-8")).items():
            if name in sharing:
                yield Recorded(kind=SHARED, name=name, case=sharing[name], reserved_bytes=_reserved(record))
    if RUNGS in kinds:
        yield from _rungs()


def _reserved(record: dict[str, Any]) -> int:
    phases = [rank["init"] for rank in record["ranks"]]
    phases += [phase for rank in record["ranks"] for step in rank["steps"] for phase in step["phases"].values()]
    return max(phase["peak_reserved_bytes"] or 0 for phase in phases)


def _rungs() -> Iterator[Recorded]:
    settings = {setting.name: setting for setting in SETTINGS}
    for path in (path for paths in RECORDS.values() for path in paths):
        for ladder in json.loads(path.read_text(encoding="utf-8"))["ladders"]:
            for rung in ladder["rungs"]:
                allocators = [rank["allocator"] or {} for rank in rung["ranks"]]
                if rung["outcome"] != LIVED or any(each.get("num_alloc_retries", 1) for each in allocators):
                    continue
                setting, size = settings[ladder["name"]], rung["micro_batch_size"]
                yield Recorded(
                    kind=RUNGS,
                    name=f"{setting.name} x {size}",
                    case=setting.with_micro_batch(size),
                    reserved_bytes=max(step[1] for rank in rung["ranks"] for step in (rank["init"], *rank["steps"])),
                    allocator=setting.allocator,
                )


def held(run: Recorded) -> Held:
    """The replay and its bound beside what was reserved."""
    case = run.case
    found = candidates(case.model_shape(), case.plan(), case.gpus, accelerator("h200"), run.allocator)
    expected = found.reserved_bytes
    return Held(
        recorded=run,
        expected=expected / run.reserved_bytes - 1,
        bound=reserved_bound(expected, found.late_bytes) / run.reserved_bytes - 1,
    )


def summary(found: Sequence[Held]) -> list[str]:
    """The lines of docs/verdict.md."""
    lines = [
        "| runs | number | expected: median, lowest, highest | bound: median, lowest, highest |",
        "|---|---|---|---|",
    ]
    kinds = list(dict.fromkeys(each.recorded.kind for each in found))
    for kind, rows in [(kind, [each for each in found if each.recorded.kind == kind]) for kind in kinds] + [
        ("all", list(found))
    ]:
        expected, bound = [each.expected for each in rows], [each.bound for each in rows]
        lines.append(f"| {kind} | {len(rows)} | {_three(expected)} | {_three(bound)} |")
    lowest = min(found, key=lambda each: each.bound)
    side = "above" if lowest.bound >= 0 else "below"
    share = f"{100 * abs(lowest.bound):.2f} % {side}"
    lines += ["", f"Nearest: {lowest.recorded.name}, whose bound is {share} what it reserved."]
    return lines


def _three(shares: Sequence[float]) -> str:
    return ", ".join(f"{100 * share:+.2f} %" for share in (median(shares), min(shares), max(shares)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    found = []
    for run in recorded():
        found.append(held(run))
        each = found[-1]
        sys.stdout.write(f"{run.kind:26} {run.name:46} {100 * each.expected:+7.2f} % {100 * each.bound:+7.2f} %\n")
        sys.stdout.flush()
    lines = summary(found)
    sys.stdout.write("\n".join(lines) + "\n")
    if arguments.write:
        write_text(DOCUMENT, written(DOCUMENT.read_text(encoding="utf-8"), MARKER, lines), force=True)


if __name__ == "__main__":
    main()
