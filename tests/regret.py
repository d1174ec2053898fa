"""How good the recommendation is where every stage was timed: ``python -m tests.regret [--unseen] [PROFILE.json]``.

``--write`` puts the tables of both halves into docs/search.md.

For each setting of ``tests/data/regret*.json``: what the search recommends among what was measured, what that reaches
of the best that was measured, the error of the predicted step times, and Spearman's rank correlation with the measured.
"""

from __future__ import annotations

import statistics
import sys
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from dsplan.catalogue import accelerator
from dsplan.search.search import search
from dsplan.timing.profile import Profile, read_profile
from dsplan.timing.rates import Machine, machine
from dsplan.timing.step_time import StepTime, step_time
from tests.gpu.header import read_rows
from tests.gpu.regret_jobs import capped
from tests.gpu.regret_settings import ASKED, QUICK, RECOMMENDED, SETS, Setting

DATA = Path(__file__).parent / "data"
DOCUMENT = Path(__file__).parents[1] / "docs" / "search.md"
#: The settings of every file, in the order in which they were measured: each set's, and of the fourth's what is
#: recommended once more (``--only-recommended``).
MEASURED = {**SETS, "again": SETS["fourth"]}
#: The two halves of every set.
SEEN = tuple(DATA / f"regret{'' if name == 'first' else f'_{name}'}.json" for name in MEASURED)
UNSEEN = tuple(path.with_suffix(".unseen.json") for path in SEEN)
#: Strategies of a setting that were measured again, in turns and with more steps (``tests.gpu.regret_repeats``), for
#: step times and their order.
REPEATS = DATA / "regret_repeats.json"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One setting: what was recommended (without ``--closely``) and what it is worth; shares of 1.

    Attributes:
        reached: measured tokens a second of the recommended, of the best measured; None when it did not run.
        asked: whether that is what the search said before anything was measured, buckets and all micro batches with
            it; else what it says now among what was measured.
        closely, closely_reached: the same of the search that asks the replay of the allocator.
        num_strategies: of how many strategies a configuration ran.
        errors: signed, of every predicted step time.
        correlation: Spearman's, of predicted and measured tokens a second over all that ran.
    """

    setting: str
    recommended: str
    best: str
    reached: float | None
    asked: bool
    closely: str
    closely_reached: float | None
    num_strategies: int
    errors: tuple[float, ...]
    correlation: float


def measured_settings(paths: Sequence[Path]) -> Iterator[tuple[Setting, list[dict[str, Any]]]]:
    """Every setting of some files, one for each set, with its rows; a file that is not there is left out.

    One that was measured in several sets comes once, where it was first: with all its rows, but of what was recommended
    only what the search said last.
    """
    rows: dict[str, list[dict[str, Any]]] = {}
    found: dict[str, Setting] = {}
    for settings, path in zip(MEASURED.values(), paths, strict=True):
        read = read_rows(path) if path.exists() else []
        for setting in settings:
            found.setdefault(setting.name, setting)
            mine = [row for row in read if row["setting"] == setting.name]
            kept = rows.setdefault(setting.name, [])
            if any(row["strategy"] in ASKED for row in mine):
                kept[:] = [row for row in kept if row["strategy"] not in ASKED]
            kept += mine
    if paths == SEEN:
        for row in read_rows(REPEATS):
            rows[row["setting"]].append(row)
    yield from ((setting, rows[name]) for name, setting in found.items())


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

    def speed(row: dict[str, Any]) -> float:
        return float(row["micro_batch_size"] * tokens / row["seconds"])

    # Of a machine of its own, which says nothing of how fast another would have been.
    best = max((row for row in ran if "turn" not in row), key=speed)
    times = [predicted(setting, row, of) for row in ran if row["strategy"] in setting.strategies]
    asked = next((row for row in rows if row["strategy"] == RECOMMENDED), None)
    if asked is not None:
        quick = next((row for row in rows if row["strategy"] == QUICK), asked)
        shares = [speed(row) / speed(best) if row["status"] == "ok" else None for row in (quick, asked)]
        names = [f"{row['of']} x {row['micro_batch_size']}" for row in (quick, asked)]
        return _outcome(setting, names, best, shares, True, times, ran)
    tried = {row["strategy"] for row in rows if row["status"] in ("ok", "oom", "beyond")}
    result = search(
        model,
        [plan for plan in setting.plans() if plan.name in tried],
        cluster,
        profile=of.profile,
        sizes=setting.micro_batch_sizes,
        vary=False,
        what_if=False,
    )
    chosen = None if result.winner is None else result.winner.plan
    key = ("nothing", 0) if chosen is None else (chosen.name, chosen.workload.micro_batch_size)
    share = speed(measured[key]) / speed(best) if key in measured else None
    return _outcome(setting, 2 * [f"{key[0]} x {key[1]}"], best, 2 * [share], False, times, ran)


def _outcome(
    setting: Setting,
    names: Sequence[str],
    best: dict[str, Any],
    shares: Sequence[float | None],
    asked: bool,
    times: Sequence[StepTime],
    ran: Sequence[dict[str, Any]],
) -> Outcome:
    ladder = [row for row in ran if row["strategy"] in setting.strategies]
    return Outcome(
        setting=setting.name,
        recommended=names[0],
        best=f"{best.get('of', best['strategy'])} x {best['micro_batch_size']}",
        reached=shares[0],
        asked=asked,
        closely=names[1],
        closely_reached=shares[1],
        num_strategies=len({row.get("of", row["strategy"]) for row in ran}),
        errors=tuple(time.seconds / row["seconds"] - 1 for time, row in zip(times, ladder, strict=True)),
        correlation=_correlation(times, ladder),
    )


def _correlation(times: Sequence[StepTime], ladder: Sequence[dict[str, Any]]) -> float:
    """Of predicted and measured speed; of a configuration that was measured again the median."""
    speeds: dict[tuple[str, int], list[float]] = {}
    predicted_speeds: dict[tuple[str, int], float] = {}
    for time, row in zip(times, ladder, strict=True):
        key = row["strategy"], row["micro_batch_size"]
        predicted_speeds[key] = time.tokens_per_s
        speeds.setdefault(key, []).append(row["micro_batch_size"] / row["seconds"])
    return spearman(list(predicted_speeds.values()), [statistics.median(each) for each in speeds.values()])


def written(text: str, marker: str, lines: Sequence[str]) -> str:
    """``text`` with ``lines`` between ``<!-- marker -->`` and ``<!-- /marker -->``."""
    begin, end = f"<!-- {marker} -->", f"<!-- /{marker} -->"
    before, _, rest = text.partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise ValueError(f"no {begin} ... {end}")
    return "\n".join([before + begin, *lines, end + after])


def spearman(first: Sequence[float], second: Sequence[float]) -> float:
    """The correlation of the ranks of two lists of numbers of one length; 1 for fewer than two.

    What is equal has the mean of its ranks: nothing is said of its order.
    """
    if len(first) < 2:
        return 1.0
    return statistics.correlation(_ranks(first), _ranks(second))


def _ranks(values: Sequence[float]) -> list[float]:
    ordered = sorted(values)
    return [(bisect_left(ordered, value) + bisect_right(ordered, value) - 1) / 2 for value in values]


@cache
def judged(paths: tuple[Path, ...]) -> list[Outcome]:
    """Every setting of some files, by the profile that ships; what was not measured is left out."""
    found = [outcome(setting, rows, None) for setting, rows in measured_settings(paths)]
    return [one for one in found if one is not None]


def table(found: Sequence[Outcome]) -> list[str]:
    """A Markdown table, a row a setting, and the medians; of what is recommended where there was a choice."""
    heads = ("setting", "recommended", "reached", "`--closely`", "reached", "best measured, of strategies")
    heads += ("step times, median error", "Spearman")
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for one in found:
        errors = [abs(error) for error in one.errors]
        times = ("none", "")
        if errors:
            times = (f"{100 * statistics.median(errors):.1f} % of {len(errors)}", f"{one.correlation:.3f}")
        cells = (one.setting, one.recommended, _share(one.reached), one.closely, _share(one.closely_reached))
        cells += (f"{one.best}, of {one.num_strategies}", *times)
        lines.append(f"| {' | '.join(cells)} |")
    chosen = [one for one in found if one.num_strategies > 1]
    errors = [abs(error) for one in found for error in one.errors]
    lines.append("")
    if chosen:
        shares = [one.reached or 0.0 for one in chosen]
        lines.append(
            f"Where more than one strategy was measured ({len(chosen)} of {len(found)} settings) the recommended one "
            f"reaches {100 * statistics.median(shares):.1f} % in the median, {100 * min(shares):.1f} % in the worst."
        )
    if errors:
        lines.append(f"{len(errors)} step times are {100 * statistics.median(errors):.1f} % off in the median.")
    return lines


def _share(value: float | None) -> str:
    return "out of memory" if value is None else f"{100 * value:.1f} %"


def report() -> list[str]:
    """The tables of both halves, as far as they were measured."""
    lines: list[str] = []
    for paths, words in ((SEEN, "Seen while the model was made:"), (UNSEEN, "Not looked at before:")):
        found = judged(paths)
        if found:
            lines += [*([""] if lines else []), words, "", *table(found)]
    return lines


def main() -> None:
    if "--write" in sys.argv:
        text = DOCUMENT.read_text(encoding="utf-8")
        DOCUMENT.write_text(written(text, "regret", report()), encoding="utf-8")
        return
    arguments = [argument for argument in sys.argv[1:] if argument != "--unseen"]
    paths = UNSEEN if "--unseen" in sys.argv else SEEN
    profile = read_profile(arguments[0]) if arguments else None
    of = machine(accelerator("h200"), profile)
    errors: list[float] = []
    for setting, rows in measured_settings(paths):
        found = outcome(setting, rows, profile)
        if found is None:
            continue
        errors += found.errors
        _told(found)
        for row in rows if paths is SEEN else ():
            _line(setting, row, of)
    if errors:
        median = statistics.median(abs(error) for error in errors)
        sys.stdout.write(f"{len(errors)} step times: median of the absolute error {100 * median:.1f} %\n")


def _told(found: Outcome) -> None:
    reached = "did not run" if found.reached is None else f"{100 * found.reached:.1f} %"
    error = 100 * statistics.median([abs(error) for error in found.errors] or [0.0])
    sys.stdout.write(
        f"{found.setting:20} recommended {found.recommended:22} best {found.best:22} reached {reached:8} "
        f"time {error:.1f} % Spearman {found.correlation:.3f}\n"
    )


def _line(setting: Setting, row: dict[str, Any], of: Machine) -> None:
    if row["status"] != "ok" or row["strategy"] not in setting.strategies:
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
