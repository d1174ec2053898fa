"""A grid, and what differs: ``python -m tests.oracle [--count N] [--seed S] [--jobs J] [--only NAME ...]``."""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterator, Sequence

from tests.dry_runs import dry_runs
from tests.oracle.compare import Difference, difference, specification
from tests.oracle.grid import Case, cases

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
    options = parser.parse_args()
    wanted = [case for case in cases(options.count, options.seed) if not options.only or case.name in options.only]
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


def line(each: Difference) -> str:
    worst = each.worst
    share = 100 * worst.peak_error / worst.found_peak
    return (
        f"{each.case.name:8s} peak {each.error_percent:+.3f} % worst phase {share:+.3f} % ({worst.peak_error:+,d} in "
        f"{worst.step} {worst.phase}) unsplit {100 * each.unsplit_bytes / each.found_peak:.2f} % "
        f"pinned {each.predicted_pinned - each.found_pinned:+,d} | {describe(each.case)} rank {each.rank}"
    )


def describe(case: Case) -> str:
    """What makes the case what it is, on one line."""
    model, workload, zero = case.model, case.plan.workload, case.plan.zero
    offload = "".join(
        letter for letter, there in (("o", zero.offloads_optimizer), ("p", zero.offloads_parameters)) if there
    )
    return (
        f"z{zero.stage}{offload} n{case.world_size} {workload.precision} {workload.optimizer}"
        f"{' torch' if case.plan.torch_adam else ''} gas{workload.gradient_accumulation_steps} "
        f"ckpt-{workload.activation_checkpointing} L{model.num_layers} h{model.hidden_size} "
        f"a{model.num_attention_heads} V{model.vocab_size} b{workload.micro_batch_size} s{workload.sequence_length} "
        f"{model.attention} {model.activation} p{model.dropout}{' tied' if model.tie_word_embeddings else ''}"
    )


if __name__ == "__main__":
    raise SystemExit(main())
