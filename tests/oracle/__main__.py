"""A grid, and what differs: ``python -m tests.oracle [--count N] [--seed S] [--jobs J] [--only NAME ...]``.

With ``--keep FILE`` what was found is kept, a line for each configuration, and what is there already is not run again,
but predicted again;
``--report PAGE`` writes the page from it. A configuration takes 2 to 20 s of one core.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from tests.dry_runs import dry_runs
from tests.oracle.compare import Difference, difference, specification
from tests.oracle.grid import Case, cases
from tests.oracle.kept import Kept, kept_of, predicted_again, read_kept, write_kept
from tests.oracle.report import report

SHOWN = 25


def run(wanted: Sequence[Case], jobs: int) -> Iterator[tuple[Case, Difference | str]]:
    """Dry-run every case; a Difference, or the text of what went wrong, as they are done."""
    by_name = {case.name: case for case in wanted}
    for name, found in dry_runs({case.name: specification(case) for case in wanted}, jobs=jobs):
        yield by_name[name], found if isinstance(found, str) else difference(by_name[name], found)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--optimizer", default="", help="one for all configurations: muon, which the grid leaves out")
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--report", type=Path)
    options = parser.parse_args()
    if options.report and not options.keep:
        parser.error("--report: needs --keep, from which it is written")
    drawn = cases(options.count, options.seed, options.optimizer)
    wanted = [case for case in drawn if not options.only or case.name in options.only]
    if options.keep:
        return _keep(wanted, options)
    found: list[Difference] = []
    for case, result in run(wanted, options.jobs):
        if isinstance(result, str):
            sys.stdout.write(f"{case.name} FAILED {describe(case)}\n{result[-1500:]}\n")
        else:
            found.append(result)
    found.sort(key=lambda each: -abs(each.worst.peak_error) / each.worst.found_peak)
    for each in found[: None if options.only else SHOWN]:
        sys.stdout.write(line(each) + "\n")
        if options.only:
            for phase in each.phases:
                sys.stdout.write(
                    f"    {phase.step:5s} {phase.phase:9s} peak {phase.found_peak:12,d} {phase.peak_error:+11,d}"
                    f"   level {phase.found_level:12,d} {phase.level_error:+11,d}\n"
                )
    errors = [abs(each.error_percent) for each in found]
    if errors:
        sys.stdout.write(
            f"{len(errors)} configurations: peak median {statistics.median(errors):.3f} %, worst {max(errors):.3f} %; "
            f"seconds a run {statistics.median(each.seconds for each in found):.1f}\n"
        )
    return 0


def _keep(wanted: Sequence[Case], options: argparse.Namespace) -> int:
    """The slow lane: what is kept grows with every configuration, and is put in the grid's order at the end."""
    kept = {each.name: each for each in read_kept(options.keep)}
    missing = [case for case in wanted if case.name not in kept]
    failed: list[str] = []
    started = time.monotonic()
    for number, (case, each) in enumerate(_one_by_one(missing, options.jobs), start=1):
        if isinstance(each, str):
            last = (each.strip().splitlines() or ["no reason given"])[-1]
            failed.append(f"{case.name}: {describe(case)}: {last[:200]}")
        else:
            kept[case.name] = each
            write_kept(options.keep, kept.values())
        sys.stderr.write(f"[{number}/{len(missing)}] {time.monotonic() - started:.0f} s {case.name}\n")
    ordered = [predicted_again(kept[case.name], case) for case in wanted if case.name in kept]
    write_kept(options.keep, ordered)
    if options.report and ordered:
        options.report.write_text(report(ordered, options.count, options.seed, failed), encoding="utf-8")
    return 1 if failed else 0


def _one_by_one(wanted: Sequence[Case], jobs: int) -> Iterator[tuple[Case, Kept | str]]:
    """As :func:`run`, each as soon as it is done; what goes wrong with one is its own outcome."""
    today = datetime.now(timezone.utc).date().isoformat()
    shares = [wanted[start : start + SHARE] for start in range(0, len(wanted), SHARE)]
    with ThreadPoolExecutor(jobs) as pool:
        for share in as_completed([pool.submit(_outcomes, share) for share in shares]):
            for case, found in share.result():
                try:
                    kept = kept_of(difference(case, found), describe(case), _versions(found), today)
                except Exception as error:
                    yield case, found if isinstance(found, str) else f"{type(error).__name__}: {error}"
                else:
                    yield case, kept


def _outcomes(share: Sequence[Case]) -> list[tuple[Case, Any]]:
    """The record of each, or what went wrong; where a server of dry runs dies, every one gets a server of its own."""
    specifications = {}
    outcomes: dict[str, Any] = {}
    for case in share:
        try:
            specifications[case.name] = specification(case)
        except Exception as error:
            outcomes[case.name] = f"{type(error).__name__}: {error}"
    try:
        outcomes |= dict(dry_runs(specifications, jobs=1))
    except Exception as error:
        if len(share) > 1:
            return [outcome for case in share for outcome in _outcomes([case])]
        outcomes[share[0].name] = f"{type(error).__name__}: {error}"
    return [(case, outcomes[case.name]) for case in share]


def _versions(record: dict[str, object]) -> dict[str, str]:
    versions = record["versions"]
    assert isinstance(versions, dict)
    return {name: str(versions[name]) for name in ("torch", "deepspeed")}


#: Configurations that one server of dry runs is given: it starts in seconds, and answers when it has done them all.
SHARE = 4


def line(each: Difference) -> str:
    worst = each.worst
    return (
        f"{each.case.name:8s} peak {each.error_percent:+.3f} % worst phase {worst.error_percent:+.3f} % "
        f"({worst.peak_error:+,d} in {worst.step} {worst.phase}) allocated {each.allocated_error_percent:+.2f} % "
        f"pinned {each.predicted_pinned - each.found_pinned:+,d} pageable "
        f"{each.predicted_pageable - each.found_pageable:+,d} | {describe(each.case)} rank {each.rank}"
    )


def describe(case: Case) -> str:
    """What makes the case what it is, on one line."""
    model, workload, zero = case.model, case.plan.workload, case.plan.zero
    offload = "".join(
        letter for letter, there in (("o", zero.offloads_optimizer), ("p", zero.offloads_parameters)) if there
    )
    checkpointing = case.plan.checkpointing
    flags = [
        (zero.offload_optimizer.device == "nvme", "nvme"),
        (zero.offload_optimizer.ratio < 1, f"ratio {zero.offload_optimizer.ratio}"),
        (workload.grad_accum_dtype is not None, f"grads-{workload.grad_accum_dtype}"),
        (workload.communication_data_type is not None, f"comm-{workload.communication_data_type}"),
        (case.plan.torch_autocast is not None, f"autocast-{case.plan.torch_autocast}"),
        (zero.zero_hpz_partition_size > 1, f"hpz-{zero.zero_hpz_partition_size}"),
        (checkpointing.partition_activations, "partitioned"),
        (checkpointing.cpu_checkpointing, "on-host"),
        (checkpointing.contiguous_memory_optimization, f"contiguous-{checkpointing.number_checkpoints}"),
        (not zero.memory_efficient_linear, "torch-linear"),
        (model.tie_word_embeddings, "tied"),
    ]
    return (
        f"z{zero.stage}{offload} n{case.world_size} {workload.precision} {workload.optimizer}"
        f"{' torch' if case.plan.torch_adam else ''} gas{workload.gradient_accumulation_steps} "
        f"ckpt-{workload.activation_checkpointing} L{model.num_layers} h{model.hidden_size} "
        f"a{model.num_attention_heads} V{model.vocab_size} b{workload.micro_batch_size} s{workload.sequence_length} "
        f"{model.attention} {model.activation} p{model.dropout}" + "".join(f" {text}" for there, text in flags if there)
    )


if __name__ == "__main__":
    raise SystemExit(main())
