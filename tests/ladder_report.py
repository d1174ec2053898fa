"""The verdict against ladders that were climbed on real GPUs: ``python -m tests.ladder_report [--set SET] [--unseen]``.

``tests/gpu/ladders.py`` made the records. Each rung is judged with its cap as what the device offers to torch's
allocator, by the code that ``dsplan estimate`` judges with. ``--write`` judges all of them and puts the tables and the
sums into docs/verdict.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dsplan.catalogue import accelerator
from dsplan.files import write_text
from dsplan.kernels import kernels_of
from dsplan.verdict.candidates import candidates
from dsplan.verdict.judge import DOES_NOT_FIT, FITS, TIGHT, Candidates, Pressed, firmly, press
from dsplan.walk import capacity_of, walk
from tests.gpu.ladder_settings import SETTINGS, Setting
from tests.regret import written

DATA = Path(__file__).parent / "data"
DOCUMENT = DATA.parents[1] / "docs" / "verdict.md"
SEEN, UNSEEN = DATA / "ladders.json", DATA / "ladders.unseen.json"
#: Of each set of ``ladder_settings.SETS`` the half that was seen while the verdict was made, and the other.
RECORDS = {
    "first": (SEEN, UNSEEN),
    "second": (DATA / "ladders_second.json", DATA / "ladders_second.unseen.json"),
}
DEVICE = "h200"  # on which the records were made
LIVED = "survived"


@dataclass(frozen=True, kw_only=True)
class JudgedRung:
    """One rung: what happened and what the verdict says; bytes of the allocator."""

    size: int
    lived: bool
    pressed: Pressed

    @property
    def is_broken_promise(self) -> bool:
        return self.pressed.verdict == FITS and not self.lived

    @property
    def is_refusal(self) -> bool:
        """It ran, and was called ``does not fit``."""
        return self.pressed.verdict == DOES_NOT_FIT and self.lived


@dataclass(frozen=True, kw_only=True)
class JudgedLadder:
    """One ladder; ``called_fits`` is what was called the largest before it was climbed, None: nothing was."""

    name: str
    cap_bytes: int
    largest_that_lived: int
    is_closed: bool
    called_fits: int | None = None
    rungs: list[JudgedRung] = field(default_factory=list)

    @property
    def largest_that_fits(self) -> int:
        """The largest of the rungs that are called ``fits``."""
        return max((rung.size for rung in self.rungs if rung.pressed.verdict == FITS), default=0)


def candidates_of(setting: Setting, size: int) -> tuple[Candidates, int]:
    """The traces of one rung, and its peak of allocated memory by the formulas."""
    case, device = setting.with_micro_batch(size), accelerator(DEVICE)
    model, plan, kernels = case.model_shape(), case.plan(), kernels_of(device)
    capacity = capacity_of(device, case.gpus)
    walked = walk(model, plan, case.gpus, kernels, capacity_bytes=capacity)
    found = candidates(model, plan, case.gpus, device, setting.allocator)
    return found, max(step.peak_bytes for step in walked.steps)


def judged_rung(setting: Setting, size: int, offered_bytes: int, *, closely: bool = False) -> Pressed:
    """As ``dsplan estimate`` judges, with so much for torch's allocator."""
    found, peak = candidates_of(setting, size)
    pressed = press(found, peak, offered_bytes, closely=closely)
    return firmly(pressed, peak, size, lambda smaller: candidates_of(setting, smaller))


def judge(document: dict[str, Any], *, closely: bool = False) -> list[JudgedLadder]:
    """Every rung of a record that lived or died."""
    settings = {setting.name: setting for setting in SETTINGS}
    found = []
    for ladder in document["ladders"]:
        setting = settings[ladder["name"]]
        lived, died = ladder["largest_that_lived"], ladder["smallest_that_died"]
        judged = JudgedLadder(
            name=setting.name,
            cap_bytes=ladder["cap_bytes"],
            largest_that_lived=lived,
            is_closed=died is not None and died == lived + 1,
            called_fits=ladder.get("called_fits"),
        )
        for rung in ladder["rungs"]:
            if rung["outcome"] == "failed":
                continue
            size = rung["micro_batch_size"]
            pressed = judged_rung(setting, size, ladder["cap_bytes"], closely=closely)
            judged.rungs.append(JudgedRung(size=size, lived=rung["outcome"] == LIVED, pressed=pressed))
        found.append(judged)
    return found


def summary(ladders: list[JudgedLadder]) -> dict[str, Any]:
    """The issue's questions, answered."""
    rungs = [rung for ladder in ladders for rung in ladder.rungs]
    closed = [ladder for ladder in ladders if ladder.is_closed]
    exact = [ladder for ladder in closed if ladder.largest_that_fits == ladder.largest_that_lived]
    asked = [ladder for ladder in closed if ladder.called_fits is not None]
    verdicts = Counter((rung.pressed.verdict, rung.lived) for rung in rungs)
    return {
        "ladders": len(ladders),
        "closed": len(closed),
        "rungs": len(rungs),
        "broken_promises": sum(rung.is_broken_promise for rung in rungs),
        "most_refusals_on_a_ladder": max((sum(r.is_refusal for r in ladder.rungs) for ladder in ladders), default=0),
        "refusals": sum(rung.is_refusal for rung in rungs),
        "exact": len(exact),
        "exact_percent": 100 * len(exact) / len(closed) if closed else None,
        "exact_before_the_climb": sum(ladder.called_fits == ladder.largest_that_lived for ladder in asked),
        "asked_before_the_climb": len(asked),
        "verdicts": {f"{verdict}, {'lived' if lived else 'died'}": n for (verdict, lived), n in verdicts.items()},
    }


def _line(ladder: JudgedLadder) -> str:
    signs = {FITS: "f", TIGHT: "t", DOES_NOT_FIT: "n"}
    rungs = " ".join(
        f"{rung.size}{signs[rung.pressed.verdict]}{'+' if rung.lived else '-'}"
        + ("!!" if rung.is_broken_promise else "?" if rung.is_refusal else "")
        for rung in ladder.rungs
    )
    same = "=" if ladder.largest_that_fits == ladder.largest_that_lived else "x"
    closed = "" if ladder.is_closed else " (open)"
    return (
        f"{ladder.name:32} {ladder.cap_bytes / 2**30:5.1f} GiB  lived {ladder.largest_that_lived:3}"
        f" fits {ladder.largest_that_fits:3} {same}{closed}  {rungs}"
    )


def _row(ladder: JudgedLadder) -> str:
    """A row of docs/verdict.md."""
    signs = {FITS: "f", TIGHT: "t", DOES_NOT_FIT: "n"}
    rungs = " ".join(f"{r.size}{signs[r.pressed.verdict]}{'+' if r.lived else '-'}" for r in ladder.rungs)
    lived = f"{ladder.largest_that_lived}{'' if ladder.is_closed else '+'}"
    before = "" if ladder.called_fits is None else f" | {ladder.called_fits}"
    cap = f"{ladder.cap_bytes / 2**30:g}"
    return f"| {ladder.name} | {cap} | {lived}{before} | {ladder.largest_that_fits} | {rungs} |"


def _table(ladders: list[JudgedLadder]) -> list[str]:
    """The ladders of which a rung was reached."""
    reached = [ladder for ladder in ladders if ladder.rungs]
    before = any(ladder.called_fits is not None for ladder in reached)
    columns = ["ladder", "cap, GiB", "largest that lived", "largest called `fits`", "rungs"]
    if before:
        columns.insert(3, "called before the climb")
    return [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|", *map(_row, reached)]


def sums(ladders: list[JudgedLadder]) -> str:
    """What the issue asks, of all ladders."""
    found = summary(ladders)
    return (
        f"Of both sets, {found['closed']} ladders that were climbed to their edge and {found['rungs']} rungs: "
        f"{found['broken_promises']} rungs that are called `fits` died, on {found['exact']} ladders "
        f"({found['exact_percent']:.0f} %) the largest micro batch is exactly right, and of the rungs that lived "
        f"{found['refusals']} is called `does not fit`, at most {found['most_refusals_on_a_ladder']} on a ladder."
    )


def write() -> None:
    """Judge every ladder and write docs/verdict.md."""
    text, everything = DOCUMENT.read_text(encoding="utf-8"), []
    for name, paths in RECORDS.items():
        for path, half in zip(paths, ("", "-unseen"), strict=True):
            ladders = judge(json.loads(path.read_text(encoding="utf-8")))
            everything += ladders
            text = written(text, f"ladders-{name}{half}", _table(ladders))
            sys.stdout.write(f"{name}{half}: {len(ladders)} ladders\n")
            sys.stdout.flush()
    said = sums(everything)
    sys.stdout.write(said + "\n")
    write_text(DOCUMENT, written(text, "ladders-all", textwrap.wrap(said, 120)), force=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--set", choices=RECORDS, default="first")
    parser.add_argument("--markdown", action="store_true", help="rows as docs/verdict.md has them")
    parser.add_argument("--unseen", action="store_true", help="the ladders that nobody looked at while it was made")
    parser.add_argument("--file", type=Path)
    parser.add_argument("--write", action="store_true", help="judge all, and write docs/verdict.md")
    arguments = parser.parse_args()
    if arguments.write:
        write()
        return
    path = arguments.file or RECORDS[arguments.set][arguments.unseen]
    ladders = judge(json.loads(path.read_text(encoding="utf-8")))
    for ladder in ladders:
        sys.stdout.write((_row if arguments.markdown else _line)(ladder) + "\n")
    sys.stdout.write("f fits, t tight, n does not fit; + lived, - died; !! broken promise, ? refused\n")
    sys.stdout.write(json.dumps(summary(ladders), indent=1) + "\n")


if __name__ == "__main__":
    main()
