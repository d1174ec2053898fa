"""Side by side: what a dry run asks its allocator for, and what the formulas' trace does.

``python -m tests.oracle.side SEED-NUMBER ...`` prints of each configuration of the grid where the two differ first.
What is released between two requests has no order: the allocator is left with the same blocks.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from dsplan.events.read import Event, read_events
from dsplan.kernels import kernels_of
from dsplan.ledger import DEVICE
from dsplan.units import MIB, round_up
from dsplan.verdict.operations import EMPTY_CACHE, RELEASE, Trace
from dsplan.verdict.trace import trace
from dsplan.walk import capacity_of
from tests.dry_runs import dry_runs
from tests.oracle.compare import STEPS, TARGET, specification
from tests.oracle.grid import Case, cases

#: Requests below it are left out: losses and scales, which no formula follows.
SMALLEST = MIB + 1
_BLOCK = 512

#: A request as (bytes, stream), or the number of the requests whose blocks are released, in their order.
Step = tuple[int, int] | tuple[int, ...]


def of_dry_run(events: Iterable[Event]) -> Iterator[Step]:
    """The device's requests of at least :data:`SMALLEST`, and what was released before each."""
    numbers: dict[int, int] = {}
    released: list[int] = []
    for event in events:
        if event.get("place") != DEVICE:
            continue
        if event["action"] == "alloc" and round_up(event["requested_bytes"], _BLOCK) >= SMALLEST:
            yield tuple(sorted(released))
            released = []
            numbers[event["event"]] = len(numbers)
            yield round_up(event["requested_bytes"], _BLOCK), event["stream"]
        elif event["action"] == "free" and event["of"] in numbers:
            released.append(numbers[event["of"]])


def of_trace(traced: Trace) -> Iterator[Step]:
    """The same of a trace."""
    numbers: dict[int, int] = {}
    released: list[int] = []
    for operation, (size, other) in enumerate(traced.operations):
        if size >= SMALLEST:
            yield tuple(sorted(released))
            released = []
            numbers[operation] = len(numbers)
            yield int(size), other
        elif size == RELEASE and other in numbers:
            released.append(numbers[other])
        else:
            assert size >= 0 or size in (RELEASE, EMPTY_CACHE)


def first_difference(dry: list[Step], ours: list[Step]) -> str | None:
    """Where the two differ first, in words; None: nowhere. Streams may be numbered otherwise."""
    streams: dict[int, int] = {}
    for number, (found, expected) in enumerate(zip(dry, ours, strict=False)):
        same = found == expected
        if number % 2:  # a request
            same = found[0] == expected[0] and streams.setdefault(found[1], expected[1]) == expected[1]
        if not same:
            kind = "request" if number % 2 else "what is released before request"
            return f"{kind} {number // 2}: dry run {found}, formulas {expected}"
    if len(dry) != len(ours):
        return f"dry run {len(dry) // 2} requests, formulas {len(ours) // 2}"
    return None


def differences(wanted: Iterable[Case], folder: Path) -> Iterator[tuple[str, str | None]]:
    """Of each case its name and the first difference; the dry runs' events are written to ``folder``."""
    by_name = {case.name: case for case in wanted}
    events = {name: folder / f"{name}.jsonl" for name in by_name}
    specs = {name: replace(specification(case), events=str(events[name])) for name, case in by_name.items()}
    for name, record in dry_runs(specs, jobs=1):
        if isinstance(record, str):
            yield name, record
            continue
        case = by_name[name]
        traced = trace(
            case.model,
            case.plan,
            case.world_size,
            kernels_of(TARGET),
            rank=record["rank"],
            capacity_bytes=capacity_of(TARGET, case.world_size),
            num_steps=STEPS,
        )
        yield name, first_difference(list(of_dry_run(read_events(events[name]))), list(of_trace(traced)))


def named(names: Iterable[str]) -> list[Case]:
    """The configurations ``SEED-NUMBER`` of the grid."""
    found = []
    for name in names:
        seed, number = (int(part) for part in name.split("-"))
        found.append(list(cases(number + 1, seed))[-1])
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="+", metavar="SEED-NUMBER")
    different = 0
    with tempfile.TemporaryDirectory() as folder:
        names = parser.parse_args().names
        wrong = [name for name in names if not re.fullmatch(r"\d+-\d+", name)]
        if wrong:
            parser.error(f"{', '.join(wrong)}: not SEED-NUMBER, such as 20261121-356")
        for name, difference in differences(named(names), Path(folder)):
            different += difference is not None
            sys.stdout.write(f"{name}: {difference or 'the same'}\n")
    return 1 if different else 0


if __name__ == "__main__":
    raise SystemExit(main())
