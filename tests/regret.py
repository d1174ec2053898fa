"""How good the recommendation is where every stage was timed: ``python -m tests.regret [--unseen] [PROFILE.json]``.

For each setting of ``tests/data/regret.json``: what the search recommends among what was measured, what that reaches of
the best that was measured, the error of the predicted step times, and Spearman's rank correlation with the measured.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dsplan.catalogue import accelerator
from dsplan.estimate import overhead_of
from dsplan.hardware import Cluster
from dsplan.search.search import search
from dsplan.timing.profile import Profile, read_profile
from dsplan.timing.rates import Machine, machine
from dsplan.timing.step_time import StepTime, step_time
from tests.gpu.regret_settings import SETTINGS, Setting

DATA = Path(__file__).parent / "data"
SEEN, UNSEEN = DATA / "regret.json", DATA / "regret.unseen.json"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One setting: what was recommended and what it is worth; shares of 1.

    Attributes:
        reached: measured tokens a second of the recommended, of the best measured; None when it did not run.
        errors: signed, of every predicted step time.
        correlation: Spearman's, of predicted and measured tokens a second over all that ran.
    """

    setting: str
    recommended: str
    best: str
    reached: float | None
    errors: tuple[float, ...]
    correlation: float


def rows_of(path: Path, setting: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return [row for row in rows if row["setting"] == setting]


def capped(setting: Setting) -> Cluster:
    """The setting's machine: an H200 whose memory is the cap, and what lies outside the allocator on top of it."""
    card = accelerator("h200")
    outside = max(overhead_of(setting.model_shape(), plan, card, setting.ranks, 0) for plan in setting.plans())
    small = replace(card, memory_bytes=setting.cap_bytes + outside, driver_reserve_bytes=0)
    return Cluster(accelerator=small, gpus_per_node=setting.ranks)


def predicted(setting: Setting, row: dict[str, Any], of: Machine) -> StepTime:
    plan = next(plan for plan in setting.plans(row["micro_batch_size"]) if plan.name == row["strategy"])
    return step_time(setting.model_shape(), plan, capped(setting), of)


def outcome(setting: Setting, rows: Sequence[dict[str, Any]], profile: Profile | None) -> Outcome | None:
    """What the search recommends in ``setting``, held against ``rows``; None where nothing was measured."""
    ran = [row for row in rows if row["status"] == "ok"]
    if not ran:
        return None
    model, cluster = setting.model_shape(), capped(setting)
    of = machine(accelerator("h200"), profile)
    tokens = setting.sequence_length * setting.ranks
    measured = {(row["strategy"], row["micro_batch_size"]): row for row in ran}
    names = {row["strategy"] for row in rows if row["status"] in ("ok", "oom", "beyond")}
    result = search(
        model,
        [plan for plan in setting.plans() if plan.name in names],
        cluster,
        profile=of.profile,
        sizes=setting.micro_batch_sizes,
        vary=False,
        what_if=False,
    )

    def speed(row: dict[str, Any]) -> float:
        return float(row["micro_batch_size"] * tokens / row["seconds"])

    best = max(ran, key=speed)
    times = [predicted(setting, row, of) for row in ran]
    chosen = None if result.winner is None else result.winner.plan
    key = ("nothing", 0) if chosen is None else (chosen.name, chosen.workload.micro_batch_size)
    return Outcome(
        setting=setting.name,
        recommended=f"{key[0]} x {key[1]}",
        best=f"{best['strategy']} x {best['micro_batch_size']}",
        reached=speed(measured[key]) / speed(best) if key in measured else None,
        errors=tuple(time.seconds / row["seconds"] - 1 for time, row in zip(times, ran, strict=True)),
        correlation=spearman([time.tokens_per_s for time in times], [speed(row) for row in ran]),
    )


def spearman(first: Sequence[float], second: Sequence[float]) -> float:
    """The correlation of the ranks of two lists of numbers of one length; 1 for fewer than two."""

    def ranks(values: Sequence[float]) -> list[float]:
        ordered = sorted(range(len(values)), key=lambda index: values[index])
        found = [0.0] * len(values)
        for rank, index in enumerate(ordered):
            found[index] = float(rank)
        return found

    if len(first) < 2:
        return 1.0
    return statistics.correlation(ranks(first), ranks(second))


def main() -> None:
    arguments = [argument for argument in sys.argv[1:] if argument != "--unseen"]
    path = UNSEEN if "--unseen" in sys.argv else SEEN
    profile = read_profile(arguments[0]) if arguments else None
    of = machine(accelerator("h200"), profile)
    errors: list[float] = []
    for setting in SETTINGS:
        rows = rows_of(path, setting.name)
        found = outcome(setting, rows, profile)
        if found is None:
            continue
        errors += found.errors
        reached = "did not run" if found.reached is None else f"{100 * found.reached:.1f} %"
        sys.stdout.write(
            f"{found.setting:20} recommended {found.recommended:22} best {found.best:22} reached {reached:8} "
            f"time {100 * statistics.median(abs(error) for error in found.errors):.1f} % "
            f"Spearman {found.correlation:.3f}\n"
        )
        if "--unseen" not in sys.argv:
            for row in rows:
                _line(setting, row, of)
    if errors:
        median = statistics.median(abs(error) for error in errors)
        sys.stdout.write(f"{len(errors)} step times: median of the absolute error {100 * median:.1f} %\n")


def _line(setting: Setting, row: dict[str, Any], of: Machine) -> None:
    if row["status"] != "ok":
        return
    time = predicted(setting, row, of)
    phases = [f"{1e3 * row[name]:.0f}" for name in ("forward_s", "backward_s", "step_s")]
    guessed = [f"{1e3 * seconds:.0f}" for seconds in (time.forward_s, time.backward_s, time.update_s)]
    parts = ", ".join(f"{name[:9]} {1e3 * seconds:.0f}" for name, seconds in time.parts.items() if seconds > 5e-4)
    sys.stdout.write(
        f"  {row['strategy']:18} {row['micro_batch_size']:4} {1e3 * row['seconds']:8.1f} ms {time.seconds * 1e3:8.1f} "
        f"{100 * (time.seconds / row['seconds'] - 1):+6.1f} %  {' '.join(phases)} / {' '.join(guessed)}  {parts}\n"
    )


if __name__ == "__main__":
    main()
