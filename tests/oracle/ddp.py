"""torch's DDP on random configurations, formulas and dry: ``python -m tests.oracle.ddp [--count N] [--seed N]``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace

from dsplan.dsconfig.ddp import ddp_document
from dsplan.plan import TORCH_OPTIMIZERS, Plan
from runner.spec import RunSpec
from tests.dry_runs import dry_runs
from tests.oracle import grid
from tests.oracle.compare import Difference, difference, specification
from tests.oracle.grid import Case


def cases(count: int, seed: int) -> Iterator[Case]:
    """The grid's models and workloads, trained by DDP: what it has no equal of is replaced."""
    for case in grid.cases(count, seed):
        workload = case.plan.workload
        checkpointing, optimizer = workload.activation_checkpointing, workload.optimizer
        plan = Plan(
            name=case.name,
            ddp=True,
            workload=replace(
                workload,
                activation_checkpointing="torch" if checkpointing == "deepspeed" else checkpointing,
                optimizer=optimizer if optimizer in TORCH_OPTIMIZERS else "adamw",
                grad_accum_dtype=None,
                communication_data_type=None,
            ),
        )
        yield replace(case, plan=plan)


def ddp_specification(case: Case) -> RunSpec:
    """The dry run of a case."""
    of_deepspeed = specification(case)
    return replace(of_deepspeed, ds_config=ddp_document(case.plan, of_deepspeed.ds_config))


def differences(wanted: Sequence[Case], jobs: int = 1) -> Iterator[tuple[Case, Difference | str]]:
    """Of each case what differs, or the message that its dry run ended with."""
    by_name = {case.name: case for case in wanted}
    specs = {name: ddp_specification(case) for name, case in by_name.items()}
    for name, record in dry_runs(specs, jobs=jobs):
        yield by_name[name], record if isinstance(record, str) else difference(by_name[name], record)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    far = 0
    for case, found in differences(list(cases(options.count, options.seed))):
        workload, model = case.plan.workload, case.model
        what = (
            f"{case.name:14} {model.num_layers:3}x{model.hidden_size:5} {model.attention:5} {workload.precision} "
            f"{workload.optimizer:7} {workload.activation_checkpointing:5} n{case.world_size} "
            f"gas{workload.gradient_accumulation_steps} b{workload.micro_batch_size} s{workload.sequence_length}"
        )
        if isinstance(found, str):
            far += 1
            sys.stdout.write(f"{what}: {found}\n")
            continue
        far += abs(found.error_percent) > 0.1
        sys.stdout.write(
            f"{what}: {found.error_percent:+.3f} %, allocated {found.allocated_error_percent:+.3f} %, worst "
            f"{found.worst.step} {found.worst.phase} {found.worst.peak_error:+,} of {found.worst.found_peak:,} "
            f"({found.worst.error_percent:+.2f} %)\n"
        )
    return 1 if far else 0


if __name__ == "__main__":
    raise SystemExit(main())
