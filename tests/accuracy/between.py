"""Runs that something outside DeepSpeed decided: two numbers are foretold, and what was measured lies between them.

Malloc keeps, of a model that was built on the host and has moved to the device, all or nothing where its threshold
moves (:mod:`dsplan.verdict.heap`); torch's watchdog gives back what collectives hold before their wait, or does not
(:mod:`tests.early_release`). ``verify`` fixes the first by itself and the second with ``--late-release``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from dsplan.measurement import Measurement, measurement_from_document
from dsplan.modelfile import shape_from_config
from dsplan.units import MIB
from dsplan.verify_device import measured_accelerator
from tests.accuracy.records import compared, host_of_node, resident_bytes
from tests.early_release import BETWEEN, EARLIEST, LATEST, released, steady_steps
from tests.record_plans import host_is_open, plan_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """One quantity of one record, in bytes; ``lowest`` and ``highest`` were measured, ``most`` None: no bound."""

    record: str
    quantity: str
    least: int
    lowest: int
    highest: int
    most: int | None


@cache
def records() -> Mapping[str, Measurement]:
    """By name, those of ``tests/data/between`` first, then others that offload and whose host memory is open."""
    kept = {path.stem: _read(path) for path in sorted(BETWEEN.glob("*.json"))}
    return kept | {found.name: found.measurement for found in compared() if found.plan.zero.offloads and not found.host}


def _read(path: Path) -> Measurement:
    return measurement_from_document(json.loads(path.read_text(encoding="utf-8")), path.name)


def host_ranges() -> Iterator[Range]:
    """Resident memory of all ranks: as expected, and with all that malloc may keep; or without a bound."""
    for name, found in records().items():
        resident, plan = resident_bytes(found), plan_of(found, name)
        if resident is None or not host_is_open(found, plan, name):
            continue
        model = shape_from_config(dict(found.configuration.model), where=name)
        host = host_of_node(found, model, plan, measured_accelerator(found.device))
        yield Range(
            record=name,
            quantity="host memory of the node",
            least=host.bytes_per_node,
            lowest=resident,
            highest=resident,
            most=host.bound_bytes_per_node,
        )


def release_ranges() -> Iterator[Range]:
    """Peaks of the steady steps of all ranks: dry runs whose collectives give back as early and as late as can be."""
    bounds = released()
    for name in (name for name in bounds if name in records()):
        steps = list(steady_steps(records()[name]))
        for phase in ("forward", "backward"):
            peaks = [step[phase][1] for step in steps]
            yield Range(
                record=name,
                quantity=f"allocated, peak of {phase}, {len(peaks)} steps",
                least=bounds[name][EARLIEST][phase][1],
                lowest=min(peaks),
                highest=max(peaks),
                most=bounds[name][LATEST][phase][1],
            )


def table() -> list[str]:
    """Every range, in MiB."""
    lines = [
        "| record | quantity | at least | measured | at most |",
        "|---|---|---|---|---|",
    ]
    for found in (*host_ranges(), *release_ranges()):
        measured = [f"{size / MIB:,.0f}" for size in sorted({found.lowest, found.highest})]
        lines.append(
            f"| {found.record} | {found.quantity} | {found.least / MIB:,.0f} | {' to '.join(measured)} "
            f"| {'no bound' if found.most is None else f'{found.most / MIB:,.0f}'} |"
        )
    return lines
