"""Hold the model of step time against the committed records: ``python -m tests.step_accuracy [PROFILE.json]``.

Prints one line a record and the errors by kind. ``--write`` puts the errors by data sheets and by the shipped profile
into docs/step-time.md.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dsplan.catalogue import accelerator
from dsplan.dsconfig.read import read_document
from dsplan.hardware import Cluster
from dsplan.measurement import Measurement, read_measurement
from dsplan.modelfile import shape_from_config
from dsplan.plan import Plan
from dsplan.timing.profile import Profile, read_profile
from dsplan.timing.profiles import DATA_SHEETS, shipped
from dsplan.timing.rates import Machine, machine
from dsplan.timing.step_time import StepTime, step_time
from tests.regret import spearman, written

#: Records, and those of them whose host memory something outside DeepSpeed decided: their steps are as good.
FOLDERS = tuple(Path(__file__).parent / "data" / name for name in ("measured", "between"))
DOCUMENT = Path(__file__).parents[1] / "docs" / "step-time.md"


def measured_seconds(measurement: Measurement) -> float:
    """The fastest steady step of rank 0: other runs shared the machine, which makes steps longer, never shorter.

    Steady is every step that updated, but for the first, which makes optimizer states, and at stage 3 the second, which
    is the first to prefetch.
    """
    steps = [step.seconds for step in measurement.ranks[0].steps if not step.skipped]
    return min(steps[2 if measurement.configuration.prefetches else 1 :] or steps[-1:])


def predicted(measurement: Measurement, of: Machine) -> StepTime:
    configuration = measurement.configuration
    model = shape_from_config(dict(configuration.model), where="record", name=configuration.model_name)
    read = read_document(
        configuration.ds_config,
        path=Path("record"),
        world_size=configuration.world_size,
        sequence_length=configuration.workload.sequence_length,
        activation_checkpointing=configuration.workload.activation_checkpointing,
    )
    plan = Plan(
        name=configuration.strategy,
        zero=read.plan.zero,
        workload=configuration.workload,
        gradient_clipping=read.plan.gradient_clipping,
        torch_adam=read.plan.torch_adam,
    )
    return step_time(model, plan, Cluster(gpus_per_node=configuration.world_size), of)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One record: when it was made, seconds of a step, measured and predicted."""

    name: str
    kind: str
    created: str
    measured: float
    predicted: StepTime

    @property
    def error(self) -> float:
        return self.predicted.seconds / self.measured - 1


KINDS = ("stages 0 to 2", "stage 3", "offload")
#: The records were made on two kinds of hosts, by when; a record does not name its host.
FIRST_HOSTS_UNTIL = "2026-11-21T12"
HOSTS = ("on the first hosts", "on the other hosts")


def rows(profile: Profile | None = None) -> list[Row]:
    """Every committed record against ``profile``; None is the nominal one, of data sheets."""
    of = machine(accelerator("h200"), profile or DATA_SHEETS)
    found = []
    for path in sorted(path for folder in FOLDERS for path in folder.glob("*.json")):
        measurement = read_measurement(path)
        zero = measurement.configuration.ds_config.get("zero_optimization", {})
        offloaded = any(
            zero.get(name, {}).get("device", "none") != "none" for name in ("offload_optimizer", "offload_param")
        )
        found.append(
            Row(
                name=path.stem,
                kind=KINDS[2] if offloaded else KINDS[1] if zero.get("stage") == 3 else KINDS[0],
                created=measurement.created,
                measured=measured_seconds(measurement),
                predicted=predicted(measurement, of),
            )
        )
    return found


def hosts_of(row: Row) -> str:
    """Which hosts a record was made on."""
    return HOSTS[row.created > FIRST_HOSTS_UNTIL]


def summary(found: Sequence[Row]) -> list[str]:
    """A Markdown table: errors by kind, and the order of all."""
    lines = [
        "| records | number | median of the absolute error | worst | too fast by in the median |",
        "|---|---|---|---|---|",
    ]
    for kind in ("all", *KINDS, *HOSTS):
        errors = [row.error for row in found if kind in ("all", row.kind, hosts_of(row))]
        middle = statistics.median(abs(error) for error in errors)
        worst, bias = max(errors, key=abs), statistics.median(errors)
        lines.append(f"| {kind} | {len(errors)} | {100 * middle:.1f} % | {100 * worst:+.1f} % | {-100 * bias:.1f} % |")
    correlation = spearman([row.predicted.seconds for row in found], [row.measured for row in found])
    return [
        *lines,
        "",
        f"Spearman's rank correlation of predicted and measured seconds over all of them: {correlation:.3f}.",
    ]


def main() -> None:
    if "--write" in sys.argv:
        text = DOCUMENT.read_text(encoding="utf-8")
        text = written(text, "nominal", summary(rows()))
        DOCUMENT.write_text(written(text, "h200", summary(rows(shipped("h200")))), encoding="utf-8")
        return
    profile: Profile | None = read_profile(sys.argv[1]) if len(sys.argv) > 1 else None
    found = rows(profile)
    for row in found:
        time = row.predicted
        parts = ", ".join(f"{name[:9]} {1e3 * seconds:.0f}" for name, seconds in time.parts.items() if seconds > 5e-4)
        sys.stdout.write(
            f"{row.name:36} {1e3 * row.measured:7.1f} ms  predicted {1e3 * time.seconds:7.1f}"
            f"  {100 * row.error:+6.1f} %  [{1e3 * time.forward_s:.0f} {1e3 * time.backward_s:.0f} "
            f"{1e3 * time.update_s:.0f}] {parts}\n"
        )
    sys.stdout.write("\n".join(summary(found)) + "\n")


if __name__ == "__main__":
    main()
