"""docs/accuracy.md, and the summaries of it in README.md and docs/dry-run.md."""

from __future__ import annotations

from collections.abc import Iterable

from dsplan.measurement import Measurement
from tests import ddp_records, dry_report
from tests.accuracy import between, shared, tables
from tests.accuracy.errors import Errors
from tests.accuracy.estimators import DEEPSPEED, ESTIMATORS, PLAIN, TABLE
from tests.accuracy.records import ROOT, compared, measurements, refused
from tests.accuracy.splits import halves
from tests.accuracy.tables import paragraph
from tests.accuracy.targets import rows
from tests.bench import speeds
from tests.dry_comparison import Held, all_held
from tests.dry_records import read_entries
from tests.gpu.cases import SETS
from tests.halves import SEEN, UNSEEN, half_of, half_of_set, set_of


def report() -> str:
    """docs/accuracy.md."""
    found = compared()
    parts = [
        _head(),
        ["## The formulas against H200", ""],
        paragraph(
            """Peak of allocated memory over the steps, on the rank that has most. Mean and median are signed;
            under-estimated is the share that promises too little by more than 0.01 %. An under-estimate is the costly
            kind: it promises a run that dies. The other two speak of the states of a model only, so they stand against
            those as well: what was allocated at the end of a steady backward pass, when the activations are gone."""
        ),
        [*tables.head_to_head(found), ""],
        ["### What was asked for", ""],
        paragraph(
            """Host memory is what `estimate` says of a node against the resident memory of all ranks' processes at
            most, added up, of runs whose malloc keeps nothing of the model ([the others](#between-two-numbers)).
            The dry runs are those of [the records](#the-dry-run-against-h200), of the same rank."""
        ),
        _grid(),
        [*tables.targets(rows(found)), ""],
        ["Beyond a limit, the furthest first:", ""],
        [*tables.beyond(rows(found), _dry_runs()), ""],
        ["### Peak of each phase", ""],
        [*tables.by_phase(found), ""],
    ]
    for estimator in ESTIMATORS:
        parts += [
            [f"### {estimator.title}, by what was run", ""],
            paragraph(estimator.about),
            [*tables.by_group(estimator, found), ""],
        ]
    parts += [
        ["### Between two numbers", ""],
        paragraph(
            """What something outside DeepSpeed decides, of records in `tests/data/between`: MiB foretold at least,
            measured, and foretold at most, which is what a verdict counts with. Host memory: malloc keeps of a model
            that was built on the host and has moved all or nothing, where its threshold moves
            (`dsplan/verdict/heap.py`). `verify` and the launch scripts of `emit-config` fix the threshold; the same
            eight configurations, recorded again so, are among the records above, under the same names, and side by
            side a step takes no longer (gpt2-xl-z2-offload-n1, two H200, 2026-11-22: 1.44 and 1.56 s fixed, 1.53 to
            1.59 s at 32 MiB; one fixed step of 2.7 s). Allocated: torch's watchdog gives back what collectives hold
            before their wait, or does not ([dry-run.md](dry-run.md)). `verify --late-release` has them keep it:
            1.7B-z3-offload-param-ckpt-late-n2 is the same run so, and measures the most."""
        ),
        [*between.table(), ""],
        ["### More ranks than cards", ""],
        paragraph(
            """Four and eight ranks on two H200, and eight on four (`verify --share-devices`), the models of the
            published benchmark among them: 453M, 1.7B, 10B, its "20B" of 21 layers (16.9B) and the one of 25. That a
            rank allocates there what it does on a card of its own is tested to the byte
            (`tests/runner/test_sharing.py`). MiB; formulas and dry runs (`python -m tests.dry_accuracy --shared`)
            against allocated memory, over all steps and in the phase that is farthest off. Reserved: these ranks talk
            over sockets, which is late communication ([verdict.md](verdict.md)). The host memory of runs without
            offload is what the process was measured to take beside a device of its own, and too much here."""
        ),
        [*shared.table(), ""],
        ["### torch's DDP", ""],
        paragraph(
            """`verify --plan ddp` on one, two and four H200 (torch 2.11, 2026-11-22), every rank on a card of its own;
            MiB. As they came, before anything was changed for them, the formulas were within 0.65 % of the peaks; what
            was missing were whole blocks, which are replayed now, and the order in which autocast casts its arguments
            (aten/src/ATen/autocast_mode.cpp; GCC evaluates the last one first). So these are seen records. Under caps
            of 38.1 and 39.2 GiB 1.7B in fp16 died in its update, with 40.5 it lived, as the replay says
            (`tests/test_ddp_records.py`): it needs 39.5 GiB, of which 38.1 are tensors."""
        ),
        [*ddp_records.table([ddp_records.held(*named) for named in ddp_records.read().items()]), ""],
        ["### Every record", ""],
        paragraph(
            """Peaks are of allocated memory over the steps, MiB, and the errors of all estimators. Init is the
            error of the initialisation's peak; pinned the host's. Reserved over allocated is the caching allocator's
            fragmentation on an idle card; above reserved is what the driver shows beyond it."""
        ),
        [*tables.every_record(found), ""],
        _refusals(),
        [_KNOWN_MISSES],
        [speeds.section()],
        [dry_report.section(read_entries(), measurements())],
    ]
    return "\n".join(line for part in parts for line in part)


def _head() -> list[str]:
    lines = [
        "# Accuracy",
        "",
        *paragraph(
            """Written by `python -m tests.accuracy` from the records in `tests/data/measured`, made by
            `dsplan verify`'s runner on real GPUs. Errors are predicted minus measured, in percent of the measured
            number: a negative one promises too little. First the formulas of `dsplan estimate` beside what people use
            today, then [the dry run](#the-dry-run-against-h200)."""
        ),
        "| set | records | half | made | with |",
        "|---|---|---|---|---|",
    ]
    for title in SETS:
        found = [record for name, record in measurements().items() if set_of(name) == title]
        if found:
            lines.append(f"| {title} | {len(found)} | {half_of_set(title)} | {_days(found)} | {_versions(found)} |")
    return [*lines, "", *paragraph(_about_the_halves())]


def _about_the_halves() -> str:
    unseen = any(half_of(name) == UNSEEN for name in measurements())
    state = (
        "No formula is changed for them: a change that they prompt would make them seen."
        if unseen
        else "There is none yet: what stands below says how well the formulas reproduce these runs, not how well they "
        "would others."
    )
    return f"""Seen are the records whose errors were looked at before the formulas were done: of the first set while
    they were written, of the second and third afterwards, which changed nothing, of the eighth to find what Muon takes
    (two of it were unseen until they disagreed). Unseen are all other sets. {state}
    A set is a list of cases in `tests/gpu/cases.py`, chosen before it was run."""


def _days(records: Iterable[Measurement]) -> str:
    return ", ".join(sorted({record.created[:10] for record in records}))


def _versions(records: Iterable[Measurement]) -> str:
    found = {
        f"{record.device.name}, torch {record.versions['torch']}, DeepSpeed {record.versions['deepspeed']}"
        for record in records
    }
    return "; ".join(sorted(found))


def _grid() -> list[str]:
    """Where random configurations stand, once there is such a report."""
    if not (ROOT / "docs" / "oracle.md").exists():
        return []
    return paragraph("Random configurations against their dry runs are in [oracle.md](oracle.md).")


def _refusals() -> list[str]:
    if not refused():
        return []
    listed = [f"- {found.name}: {found.reason}" for found in refused()]
    return ["### Records that the formulas do not cover", "", *listed, ""]


def _dry_runs() -> dict[str, Held]:
    return {held.name: held for held in all_held(read_entries(), measurements())}


def summary() -> str:
    """A few lines for the README."""
    found = compared()
    parts = halves(found)
    dry = Errors.of(held.value(held.allocated.peak_allocated) for held in _dry_runs().values())
    lines = [
        "Peak of allocated memory, predicted against measured on H200 GPUs: 1, 2 and 4 ranks, stages 0 to 3, fp32,",
        "fp16 and bf16, with and without offload and checkpointing.",
        "",
        "| | records | median of the absolute error | worst | under-estimated |",
        "|---|---|---|---|---|",
        _line("`dsplan estimate`, unseen while the formulas were written", Errors.of(f.peak for f in parts[UNSEEN])),
        _line("`dsplan estimate`, seen", Errors.of(f.peak for f in parts[SEEN])),
        _line("the same for all, blocks not replayed (the table of larger models)", Errors.of(map(TABLE.peak, found))),
        _line("`dsplan verify --device fake` (the dry run)", dry),
        _line(f"{DEEPSPEED.title} (no activations)", Errors.of(map(DEEPSPEED.peak, found))),
        _line(f"{PLAIN.title}, the ZeRO paper's (no activations)", Errors.of(map(PLAIN.peak, found))),
    ]
    decided = {found.record for found in between.release_ranges()}
    lines += [
        "",
        f"{len(decided)} more runs lie between two numbers, the higher of which is promised: torch's watchdog decides",
        "what collectives hold. With `verify --late-release` the same run takes the higher one (docs/accuracy.md).",
    ]
    return "\n".join([*lines, "", summary_of_dry_runs()])


def _line(title: str, errors: Errors | None) -> str:
    if errors is None:
        return f"| {title} | {tables.NONE_YET} | | | |"
    return (
        f"| {title} | {len(errors.values)} | {errors.median_absolute_percent:.2f} % "
        f"| {tables.percent(errors.worst.percent)} | {100 * errors.share_under:.0f} % |"
    )


def summary_of_dry_runs() -> str:
    """A few lines for docs/dry-run.md, and for the README."""
    return dry_report.summary(read_entries(), measurements())


_KNOWN_MISSES = """### What the formulas are known to miss

- Which block a tensor gets, in the table of all plans for models of more than 6 layers. torch counts a whole block as
  allocated when what would be left of it is at most 1 MiB (CUDACachingAllocator, `should_split`). For a large tensor in
  a segment of its own that is known from its size, and counted; in a block that another tensor has left only a replay
  of the allocator knows it, and a tensor counts up to 1 MiB more (a smaller one) or less (a large one).
  `estimate --plan`, `--ladder` and `verify` replay it (`dsplan/verdict/counted.py`); that came after the fourth set was
  opened, whose initialisations of width-1000-z2-offload-fp16-n1 and gpt2-xl-z3-offload-ckpt-n2 were 1.3 % under.
- The first backward of stage 2, and backward at stage 3, may end with one bucket still held by the collective; the
  peaks are not touched.
- What malloc keeps of a model that was built on the host and moved (stages 0 to 2), where nobody fixes its threshold:
  all or nothing, by what else lies on the heap. At the end of runs without offload, where no tensor is on the host,
  resident memory is over the process's own by 38 MiB for 1.7B (1.7B-z2-bf16-n1), 286 for gpt2-medium (-z1-bf16-n2), 906
  for gpt2-large (-z2-bf16-n2) and 2,499 for gpt2-xl (-z2-bf16-n4). `estimate`'s bound counts with all of it.
- Which products inductor pads in the code of Muon's update: its own measurements say. At stage 0 in bf16 784 MiB of
  host memory were pinned while new code was timed, and 1,040 are predicted (gpt2-medium-z0-muon-n1); where choices
  are on the disk from an earlier run nothing is timed, and the first step takes what the others do.
- When torch's watchdog looks. What is promised is the most that collectives can hold.
- Eight ranks have been measured on two and on four cards only (`tests/gpu/eight_cases.py` stands ready for eight);
  several nodes and cards other than the H200 have not.
"""
