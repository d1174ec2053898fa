"""docs/oracle.md: the formulas against the dry run, from what ``python -m tests.oracle --keep`` has kept."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

from dsplan.units import MIB
from tests.oracle.kept import Kept

#: Targets: (median, worst, most under-estimated), in percent; of a phase a larger share passes within so many bytes.
PEAK_TARGETS = (0.2, 1.0, 0.5)
PHASE_TARGETS = (0.5, 2.0, 1.0)
HOST_TARGETS = (3.0, 8.0, 3.0)
PHASE_BYTES = 16 * MIB
PHASE_UNDER_BYTES = 8 * MIB
#: Host memory is judged from a page on: below are scalars, and shapes that checkpoints keep.
PAGE_BYTES = 4096

_HEADER = """# The formulas against the dry run

Written by `python -m tests.oracle --count {count} --seed {seed} --keep tests/data/oracle.jsonl --report docs/oracle.md`
from {done} random configurations ({date}, {versions}, no GPU). Each was walked by the formulas and run through the
real engine by `verify --device fake` for an H200: the worst rank, four steps. Errors are the formulas' number minus
the dry run's, in percent of the dry run's. Tensors: what is allocated, every request rounded up to 512 bytes.
Allocator: as torch's caching allocator counts it, remainders that it does not split off included, which the formulas
find by a replay (`dsplan/verdict/counted.py`): `estimate` of small models and of a single plan, `verify` of all.
"""


def report(found: Sequence[Kept], count: int, seed: int, failed: Sequence[str] = ()) -> str:
    """The whole page; ``failed`` are configurations whose dry run did not end, one line each."""
    versions = {f"torch {each.versions['torch']}, DeepSpeed {each.versions['deepspeed']}" for each in found}
    lines = [
        _HEADER.format(
            count=count,
            seed=seed,
            done=len(found),
            date=max(each.date for each in found),
            versions="; ".join(sorted(versions)),
        ),
        "## Targets",
        "",
        *_targets(found),
        "",
        "## By phase",
        "",
        *_by_phase(found),
        "",
        "## By kind",
        "",
        *_by_trait(found),
        "",
        "## Host memory",
        "",
        "Bytes at their peaks, of every configuration that has 4 KiB of them. Pinned is what torch's pinned allocator",
        "holds and what NVMe offload locks outside of it. The batch is left out: on the host it is its loader's.",
        "",
        *_host(found),
        "",
        "## Every configuration",
        "",
        "The largest error of any phase first.",
        "",
        "| name | peak | worst phase | allocator | what |",
        "|---|---|---|---|---|",
    ]
    for each in sorted(found, key=lambda each: -abs(_worst(each)[0])):
        percent, where = _worst(each)
        lines.append(
            f"| {each.name} | {_percent(*each.peak):+.3f} % | {percent:+.3f} % in {where} "
            f"| {_percent(*each.allocated):+.2f} % | {each.text} rank {each.rank} |"
        )
    if failed:
        lines += ["", "## Not run", "", *[f"- {line}" for line in failed]]
    return "\n".join(lines) + "\n"


def _percent(predicted: int, found: int) -> float:
    return 100 * (predicted - found) / found if found else 0.0


def _worst(each: Kept) -> tuple[float, str]:
    return max(
        ((_percent(a, b), f"{step} {phase}" if step != "init" else "init") for step, phase, a, b in each.phases),
        key=lambda found: abs(found[0]),
    )


def _targets(found: Sequence[Kept]) -> list[str]:
    peaks = [_percent(*each.peak) for each in found]
    allocated = [_percent(*each.allocated) for each in found]
    pairs = [(a, b) for each in found for _, _, a, b in each.phases]
    over = sum(abs(_percent(a, b)) > PHASE_TARGETS[1] and abs(a - b) > PHASE_BYTES for a, b in pairs)
    under = sum(_percent(a, b) < -PHASE_TARGETS[2] and b - a > PHASE_UNDER_BYTES for a, b in pairs)
    far = max((abs(a - b) for a, b in pairs), default=0)
    return [
        "| quantity | numbers | median of the absolute error | target | worst | target | most under | target |",
        "|---|---|---|---|---|---|---|---|",
        _row("peak over all steps, tensors", peaks, PEAK_TARGETS),
        _row("peak over all steps, allocator", allocated, PEAK_TARGETS),
        _row("peak of each phase, tensors", [_percent(a, b) for a, b in pairs], PHASE_TARGETS),
        *[_row(f"host memory, {name}", errors, HOST_TARGETS) for name, errors in host_errors(found).items()],
        "",
        f"Of {len(pairs)} phases {over} are further off than 2 % and 16 MiB, and {under} are under by more than 1 % "
        f"and 8 MiB; the furthest is off by {far / MIB:,.1f} MiB.",
    ]


def _row(name: str, errors: Sequence[float], targets: tuple[float, float, float]) -> str:
    median, worst, under = statistics.median(map(abs, errors)), max(map(abs, errors)), min(errors)
    return (
        f"| {name} | {len(errors)} | {median:.3f} % | {targets[0]} % | {worst:.3f} % | {targets[1]} % "
        f"| {under:+.3f} % | -{targets[2]} % |"
    )


def _by_phase(found: Sequence[Kept]) -> list[str]:
    errors: dict[str, list[float]] = {}
    names = {"init": "init", "0": "first step", "1": "second step"}
    for each in found:
        for step, phase, predicted, truth in each.phases:
            name = names.get(step, "steady state")
            errors.setdefault(name if step == "init" else f"{name}, {phase}", []).append(_percent(predicted, truth))
    return _table("phase", errors.items())


def _by_trait(found: Sequence[Kept]) -> list[str]:
    groups: dict[str, list[float]] = {}
    for trait in found[0].traits:
        for value in sorted({each.traits[trait] for each in found}):
            groups[f"{trait}: {value}"] = [_percent(*each.peak) for each in found if each.traits[trait] == value]
    return _table("peak over all steps", groups.items())


def _table(title: str, groups: Iterable[tuple[str, list[float]]]) -> list[str]:
    lines = [f"| {title} | numbers | median | worst under | worst over |", "|---|---|---|---|---|"]
    for name, errors in groups:
        lines.append(
            f"| {name} | {len(errors)} | {statistics.median(errors):+.3f} % | {min(0.0, *errors, 0.0):+.3f} % "
            f"| {max(0.0, *errors, 0.0):+.3f} % |"
        )
    return lines


def host_errors(found: Sequence[Kept]) -> dict[str, list[float]]:
    """Errors in percent of pinned memory, of pageable, and of their sum where something is offloaded."""
    together = [
        (each.pinned[0] + each.pageable[0], each.pinned[1] + each.pageable[1])
        for each in found
        if each.traits["offload"] != "none"
    ]
    pairs = {
        "pinned": [each.pinned for each in found],
        "pageable": [each.pageable for each in found],
        "together": together,
    }
    errors = {name: [_percent(a, b) for a, b in of if b >= PAGE_BYTES] for name, of in pairs.items()}
    return {name: of for name, of in errors.items() if of}


def _host(found: Sequence[Kept]) -> list[str]:
    return _table("host memory", host_errors(found).items())
