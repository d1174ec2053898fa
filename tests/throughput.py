"""How long a step of 1.7B takes on four H200 by strategy, relative to DDP: ``python -m tests.throughput [RECORDS]``.

Measured beside what the model of step time predicts, by the shipped profile and by a calibration of another machine of
four H200, and what was published for eight A100 of 40 GB. The records are what ``python -m tests.gpu.sweep throughput
tests/data/throughput.json --gpus 4`` leaves; those of eight cards are named on the command line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsplan.catalogue import accelerator
from dsplan.hardware import Cluster
from dsplan.measurement import Measurement, measurement_from_document
from dsplan.timing.profiles import Profile, read_profile, shipped
from dsplan.timing.rates import machine
from dsplan.timing.step_time import step_time
from tests.gpu.ddp_cases import THROUGHPUT
from tests.timing.test_published import EPOCHS

RECORDS = Path(__file__).parent / "data" / "throughput.json"
CALIBRATION = RECORDS.with_name("calibration_four_h200.json")
BASE = "ddp"
NAMES = {
    "ddp": "DDP",
    "zero2": "ZeRO-2",
    "zero3": "ZeRO-3",
    "zero3-offload": "ZeRO-3, optimizer offloaded",
    "zero3-offload-ckpt": "the same with checkpointing",
}
#: Steps that are not those to come: the first makes optimizer states and the second DDP's buckets and stage 3's
#: prefetching; what they took is cached from the third on.
WARMING_UP = 3


@dataclass(frozen=True, kw_only=True)
class Row:
    """One strategy: seconds of a step, and of an epoch as published (None: it was not).

    ``calibrated``: as predicted by :data:`CALIBRATION`.
    """

    name: str
    measured: float
    predicted: float
    calibrated: float
    published: float | None


def seconds(measurement: Measurement) -> float:
    """Median of rank 0's steps that updated, without those in which it warms up."""
    steps = [step.seconds for step in measurement.ranks[0].steps if not step.skipped]
    return statistics.median(steps[WARMING_UP:] or steps[-1:])


def predicted(name: str, ranks: int, profile: Profile) -> float:
    """Seconds of a step of the case of that name on so many H200."""
    case = next(case for case in THROUGHPUT if case.name == name)
    card = accelerator("h200")
    on = Cluster(accelerator=card, gpus_per_node=ranks)
    return step_time(case.model_shape(), case.plan(), on, machine(card, profile)).seconds


def rows(documents: list[Mapping[str, Any]]) -> list[Row]:
    """The strategies in the order of the published epochs.

    Raises:
        LookupError: one was not recorded.
    """
    records = {each["name"]: each["record"] for each in documents if "record" in each}
    missing = [case.name for case in THROUGHPUT if case.name not in records]
    if missing:
        raise LookupError(f"not recorded: {', '.join(missing)}")
    found = []
    for name in NAMES:
        record = measurement_from_document(records[name], name)
        ranks = record.configuration.world_size
        found.append(
            Row(
                name=name,
                measured=seconds(record),
                predicted=predicted(name, ranks, shipped("h200")),
                calibrated=predicted(name, ranks, read_profile(CALIBRATION)),
                published=EPOCHS.get(name),
            )
        )
    return found


def table(found: list[Row]) -> list[str]:
    """A Markdown table, each time also relative to DDP's."""
    base = next(row for row in found if row.name == BASE)
    lines = [
        "| strategy | measured, ms | ratio | predicted, ms | ratio | by a calibration, ms | ratio "
        "| published epoch, s | ratio |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in found:
        epoch = ratio = ""
        if row.published is not None and base.published is not None:
            epoch, ratio = f"{row.published:.2f}", f"{row.published / base.published:.2f}"
        lines.append(
            f"| {NAMES[row.name]} | {1e3 * row.measured:.0f} | {row.measured / base.measured:.2f} | "
            f"{1e3 * row.predicted:.0f} | {row.predicted / base.predicted:.2f} | "
            f"{1e3 * row.calibrated:.0f} | {row.calibrated / base.calibrated:.2f} | {epoch} | {ratio} |"
        )
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("records", nargs="?", type=Path, default=RECORDS)
    path: Path = parser.parse_args().records
    try:
        found = rows(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, LookupError) as error:
        parser.error(f"{path}: {error}; record it with python -m tests.gpu.sweep throughput {path} --gpus 4")
    sys.stdout.write("\n".join(table(found)) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
