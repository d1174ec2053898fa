"""``dsplan sweep``: every strategy over GPUs, kinds of GPU, micro batches and sequences."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dsplan.cli.inputs import read_inputs
from dsplan.cli.options import JsonOption, MachineOptions, ModelOptions, WorkloadOptions
from dsplan.cli.progress import progress
from dsplan.cli.timing_options import ProfileOption, read_profile_option
from dsplan.errors import InputError

if TYPE_CHECKING:
    from dsplan.hardware import Accelerator

_MOST = 100_000
#: What asks for several of what an option asks for one.
_MANY = {
    "--gpu": "--gpu-types",
    "--gpus": "--gpu-counts",
    "--micro-batch-size": "--micro-batch-sizes",
    "--seq-len": "--seq-lens",
}
#: Of one number, as of the option that it stands for; a sequence is limited by the model's positions.
_LARGEST = {"--gpu-counts": 100_000, "--micro-batch-sizes": 65_536}


def sweep(
    *,
    model: ModelOptions,
    workload: WorkloadOptions,
    machine: MachineOptions,
    gpu_counts: Annotated[
        str | None, typer.Option("--gpu-counts", metavar="N,N", help="GPUs of a node: 1,2,4,8 (default: --gpus).")
    ] = None,
    gpu_types: Annotated[
        str | None, typer.Option("--gpu-types", metavar="NAME,NAME", help="Catalogued devices (default: --gpu).")
    ] = None,
    micro_batch_sizes: Annotated[
        str | None, typer.Option("--micro-batch-sizes", metavar="N,N", help="Default: --micro-batch-size.")
    ] = None,
    sequence_lengths: Annotated[
        str | None, typer.Option("--seq-lens", metavar="N,N", help="Tokens of a sample (default: --seq-len).")
    ] = None,
    profile: ProfileOption = None,
    times: Annotated[bool, typer.Option("--times/--no-times", help="Also compute step times.")] = True,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help=".csv, .json or .svg; CSV is printed otherwise."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Compute memory, verdict and step time of every combination, as CSV, JSON or a picture."""
    from dsplan.cli.flags import naming_flags
    from dsplan.files import require_target, write_text
    from dsplan.report.sweep import sweep_csv, sweep_document, sweep_picture
    from dsplan.search import sweep as sweeper

    if output is not None:
        if output.suffix not in (".csv", ".json", ".svg"):
            raise InputError(f"--output: {output} has the suffix {output.suffix!r}; allowed: .csv, .json, .svg")
        require_target(output, force=force)
    inputs = read_inputs(model, workload, machine)
    first = inputs.plans[0].workload
    given = inputs.cluster.accelerator
    if gpu_types is None and given is None:
        raise InputError("--gpu-types: no device was named; give some, such as a100-80gb,h100")
    named = [name for name in (gpu_types or "").split(",") if name.strip()]
    if gpu_types is not None and not named:
        raise InputError("--gpu-types: no device was named; give some, such as a100-80gb,h100")
    _require_one_of_each(
        {
            "--gpu": (machine.gpu, gpu_types),
            "--gpus": (machine.gpus, gpu_counts),
            "--micro-batch-size": (workload.micro_batch_size, micro_batch_sizes),
            "--seq-len": (workload.seq_len, sequence_lengths),
        }
    )
    devices = [_device(name) for name in named] or ([given] if given is not None else [])
    positions = inputs.model.max_position_embeddings
    grid = {
        "gpus": _numbers(gpu_counts, "--gpu-counts") or [inputs.cluster.gpus_per_node],
        "micro_batch_sizes": _numbers(micro_batch_sizes, "--micro-batch-sizes") or [first.micro_batch_size],
        "sequence_lengths": _numbers(sequence_lengths, "--seq-lens", positions) or [first.sequence_length],
    }
    plans = inputs.plans
    if machine.nvme_path is None:
        plans = tuple(plan for plan in plans if plan.zero.offload_optimizer.device != "nvme")
    count = len(devices) * len(plans)
    for numbers in grid.values():
        count *= len(numbers)
    if count > _MOST:
        raise InputError(f"sweep: {count:,} combinations are more than {_MOST:,}; ask for fewer")
    gc.freeze()  # what has been imported stays: the collector need not go through it again every few thousand plans
    with progress("Sweeping") as advance, naming_flags():
        points = list(
            sweeper.sweep(
                inputs.model,
                plans,
                inputs.cluster,
                accelerators=devices,
                profile=read_profile_option(profile),
                timed=times,
                on_progress=advance,
                **grid,
            )
        )
    if output is not None:
        import json

        text = {
            ".csv": lambda: sweep_csv(points),
            ".json": lambda: json.dumps(sweep_document(inputs.model, points), indent=1) + "\n",
            ".svg": lambda: sweep_picture(inputs.model, points),
        }[output.suffix]()
        write_text(output, text, force=force)
    if as_json:
        from dsplan.report.console import print_document

        print_document(sweep_document(inputs.model, points))
    elif output is not None:
        typer.echo(f"{len(points):,} plans in {output}")
    else:
        typer.echo(sweep_csv(points), nl=False)


def _require_one_of_each(given: Mapping[str, tuple[object, str | None]]) -> None:
    for flag, (one, many) in given.items():
        if many is not None and one is not None:
            raise InputError(f"{flag} {one} and {_MANY[flag]} {many} contradict each other; give one of them")


def _device(name: str) -> Accelerator:
    """The catalogued device, by the flag that named it."""
    from dsplan.catalogue import accelerator

    try:
        return accelerator(name)
    except InputError as error:
        raise InputError(f"--gpu-types:{str(error).partition(':')[2]}") from error


def _numbers(text: str | None, flag: str, positions: int | None = None) -> list[int]:
    """Whole numbers of at least 1, separated by commas; of tokens at most the model's ``positions``."""
    if text is None:
        return []
    found = []
    for part in text.split(","):
        if not part.strip().isdigit() or int(part) < 1:
            raise InputError(
                f"{flag}: {part.strip()!r} is not allowed; write whole numbers of at least 1, such as 1,2,4"
            )
        if positions is not None and int(part) > positions:
            raise InputError(f"{flag}: {int(part)} is longer than the model's {positions} positions")
        if int(part) > _LARGEST.get(flag, int(part)):
            raise InputError(f"{flag}: {part.strip()} is not allowed; at most {_LARGEST[flag]:,}")
        found.append(int(part))
    return found
