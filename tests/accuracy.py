"""The accuracy of formulas and dry run on the committed records: ``python -m tests.accuracy`` writes it down.

Writes docs/accuracy.md and the summaries in README.md and docs/dry-run.md; tests fail when they no longer say
what the formulas predict. The records are in tests/data/measured, made on H200 GPUs; of the dry run it takes what
``python -m tests.dry_accuracy`` has left in tests/data/dry_run.json.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from dsplan.catalogue import accelerator
from dsplan.comparison import Comparison, compare
from dsplan.dsconfig.read import read_ds_config
from dsplan.measurement import Measurement, measurement_from_document
from dsplan.modelfile import shape_from_config
from dsplan.plan import Plan
from dsplan.prediction import predict
from dsplan.units import MIB
from tests import dry_report
from tests.dry_records import read_entries
from tests.gpu.cases import FIRST

ROOT = Path(__file__).parents[1]
RECORDS = ROOT / "tests" / "data" / "measured"
#: Records of which a phase was looked at while the formulas were written.
SEEN = {case.name for case in FIRST}


@dataclass(frozen=True)
class Compared:
    """One record and what the formulas say of it."""

    name: str
    measurement: Measurement
    plan: Plan
    comparison: Comparison

    @property
    def error_percent(self) -> float:
        error = self.comparison.peak_allocated.error_percent
        assert error is not None
        return error

    @property
    def fragmentation(self) -> float:
        """Reserved over allocated memory, at their peaks."""
        measured = self.measurement
        assert measured.peak_reserved_bytes is not None
        return measured.peak_reserved_bytes / measured.peak_allocated_bytes

    @property
    def overhead_bytes(self) -> int:
        """What the driver showed above reserved memory."""
        measured = self.measurement
        assert measured.peak_device_bytes is not None
        assert measured.peak_reserved_bytes is not None
        return measured.peak_device_bytes - measured.peak_reserved_bytes


@cache
def compared() -> tuple[Compared, ...]:
    """Every record, by name."""
    return tuple(_compare(path) for path in sorted(RECORDS.glob("*.json")))


def _compare(path: Path) -> Compared:
    measurement = measurement_from_document(json.loads(path.read_text(encoding="utf-8")), path.name)
    configuration = measurement.configuration
    workload = configuration.workload
    with tempfile.TemporaryDirectory() as folder:
        ds_config = Path(folder) / f"{path.stem}.json"
        ds_config.write_text(json.dumps(configuration.ds_config), encoding="utf-8")
        plan = read_ds_config(
            ds_config,
            world_size=configuration.world_size,
            sequence_length=workload.sequence_length,
            activation_checkpointing=workload.activation_checkpointing,
        ).plan
    model = shape_from_config(dict(configuration.model), where=path.name)
    prediction = predict(model, plan, accelerator("h200"), configuration.world_size)
    return Compared(path.stem, measurement, plan, compare(measurement, prediction, tolerance_percent=5))


def summary() -> str:
    """A few lines for the README."""
    return f"{_summary_of_formulas()}\n\n{summary_of_dry_runs()}"


def summary_of_dry_runs() -> str:
    """A few lines for docs/dry-run.md, and for the README."""
    return dry_report.summary(read_entries(), _measurements())


def _measurements() -> dict[str, Measurement]:
    return {c.name: c.measurement for c in compared()}


def _summary_of_formulas() -> str:
    everything = compared()
    rows = [
        ("all records", everything),
        ("not looked at while the formulas were written", [c for c in everything if c.name not in SEEN]),
        ("with offload", [c for c in everything if c.plan.zero.offloads_optimizer]),
    ]
    lines = [
        "Peak of allocated memory on H200 GPUs, 1, 2 and 4 ranks, stages 0 to 3, fp32, fp16 and bf16, with and without",
        "offload and checkpointing; signed error of the prediction:",
        "",
        "| records | number | median of the absolute error | worst | most under-estimated |",
        "|---|---|---|---|---|",
    ]
    for title, records in rows:
        errors = [c.error_percent for c in records]
        lines.append(
            f"| {title} | {len(errors)} | {statistics.median(map(abs, errors)):.2f} % "
            f"| {max(map(abs, errors)):.2f} % | {min(errors):.2f} % |"
        )
    return "\n".join(lines)


def report() -> str:
    """docs/accuracy.md."""
    versions = {
        f"torch {c.measurement.versions['torch']}, DeepSpeed {c.measurement.versions['deepspeed']}" for c in compared()
    }
    lines = [
        "# Accuracy",
        "",
        "Written by `python -m tests.accuracy` from the records in `tests/data/measured`, made by `dsplan verify`'s runner",
        f"on NVIDIA H200 GPUs ({', '.join(sorted(versions))}). Errors are predicted minus measured, in percent of",
        "the measured number: a negative one promises too little. First the formulas of `dsplan estimate`, then",
        "[the dry run](#the-dry-run-against-h200).",
        "",
        "## The formulas against H200",
        "",
        _summary_of_formulas(),
        "",
        "Records marked * were looked at while the formulas were written; the others were made afterwards and changed nothing.",
        "",
        "### Every record",
        "",
        "Peaks are of allocated memory over the steps, MiB. Init is the peak of the initialisation; pinned the host's.",
        "Reserved over allocated is the caching allocator's fragmentation on an idle card; above reserved is what the driver",
        "shows beyond it.",
        "",
        "| record | ranks | measured | predicted | error | init error | pinned error | reserved / allocated | above reserved |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for c in compared():
        peak = c.comparison.peak_allocated
        pinned = c.comparison.host_pinned
        pinned_error = "" if pinned is None or pinned.predicted_bytes == 0 else f"{pinned.error_percent:.2f} %"
        lines.append(
            f"| {c.name}{'*' if c.name in SEEN else ''} | {c.measurement.configuration.world_size} "
            f"| {peak.measured_bytes / MIB:,.1f} | {peak.predicted_bytes / MIB:,.1f} | {c.error_percent:.2f} % "
            f"| {c.comparison.init_peak.error_percent:.2f} % | {pinned_error} | {c.fragmentation:.2f} "
            f"| {c.overhead_bytes / MIB:,.0f} MiB |"
        )
    lines += ["", "### Peak of each phase", "", "All records.", "", *_by_phase(), "", _UNEXPLAINED]
    lines.append(dry_report.section(read_entries(), _measurements()))
    return "\n".join(lines)


def _by_phase() -> list[str]:
    errors: dict[tuple[str, str], list[float]] = {}
    for c in compared():
        for phase in c.comparison.phases:
            if phase.peak.error_percent is not None:
                errors.setdefault((phase.step, phase.phase), []).append(phase.peak.error_percent)
    lines = ["| step | phase | median | worst under | worst over |", "|---|---|---|---|---|"]
    for (step, phase), found in errors.items():
        lines.append(
            f"| {step} | {phase} | {statistics.median(found):.2f} % | {min(found):.2f} % | {max(found):.2f} % |"
        )
    return lines


_UNEXPLAINED = """### What the formulas are known to miss

- torch counts a whole block as allocated when what would be left of it is at most 1 MiB
  (CUDACachingAllocator, `should_split`). Models whose tensors are no multiples of 2 MiB (gpt2-xl, odd widths) lose up to
  1 MiB per large tensor: this is most of every error above 0.3 %. It needs the allocator's rules, which the dry run
  replays and the formulas do not.
- Against the dry run without its allocator, on sixty random configurations (`python -m tests.oracle --seed 2`), the
  peak is 0.001 % off in the median and 1.76 % at worst: fp16 at stage 3 with the optimizer offloaded and tied weights.
- The first backward of stage 2, and backward at stage 3, may end with one bucket still held by the collective; the peaks
  are not touched.
- Reserved memory is computed by the dry run only. A verdict allows for 20 % over the allocated peak: under a cap of the
  predicted peak times 1.20 all of 22 cases lived, at 1.10 three died, at 1.05 fourteen (`tests/data/caps.json`).
- Host memory beyond tensors and the pinned pool (what glibc keeps after the model has moved) is not modelled.
- NVMe offload, more than four ranks, several nodes and cards other than the H200 have not been measured.
"""


def readme_with(summary_text: str, readme: str) -> str:
    """The README, or another document, with the summary between its markers."""
    before, _, rest = readme.partition("<!-- accuracy -->\n")
    _, _, after = rest.partition("<!-- /accuracy -->")
    return f"{before}<!-- accuracy -->\n{summary_text}\n<!-- /accuracy -->{after}"


def main() -> None:
    (ROOT / "docs" / "accuracy.md").write_text(report(), encoding="utf-8")
    readme = ROOT / "README.md"
    readme.write_text(readme_with(summary(), readme.read_text(encoding="utf-8")), encoding="utf-8")
    dry_run = ROOT / "docs" / "dry-run.md"
    dry_run.write_text(readme_with(summary_of_dry_runs(), dry_run.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
