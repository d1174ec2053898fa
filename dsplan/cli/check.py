"""``dsplan check``: what is wrong with a configuration, before it costs a day."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dsplan.cli.completion import accelerators, consumers
from dsplan.cli.options import ModelOptions
from dsplan.errors import EXIT_FINDINGS, EXIT_OK, InputError, choice, require_positive

if TYPE_CHECKING:
    from dsplan.check.configuration import Run
    from dsplan.check.run import Checked
    from dsplan.hardware import Cluster
    from dsplan.model import ModelShape

_RUN = "Run"
_OUTPUT = "Output"
#: GPUs of a node where only the ranks are known.
_GPUS_PER_NODE = 8
_MOST_RANKS = 100_000


def check(
    *,
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="JSON, Hjson, Markdown, or accelerate's YAML.")
    ],
    consumer: Annotated[
        str,
        typer.Option(
            "--for",
            metavar="WHO",
            autocompletion=consumers,
            help="Who reads the file: deepspeed, hf, accelerate or lightning.",
            rich_help_panel=_RUN,
        ),
    ] = "deepspeed",
    world_size: Annotated[
        int | None,
        typer.Option(
            "--world-size",
            metavar="N",
            help="Ranks: checks the batch sizes (default: not known).",
            rich_help_panel=_RUN,
        ),
    ] = None,
    gpu: Annotated[
        str | None,
        typer.Option(
            "--gpu",
            metavar="NAME",
            autocompletion=accelerators,
            help="Catalogued device: with a model, checks what fits.",
            rich_help_panel=_RUN,
        ),
    ] = None,
    device_memory: Annotated[
        str | None,
        typer.Option(
            "--device-memory", metavar="SIZE", help="40GiB, in place of the catalogue's figure.", rich_help_panel=_RUN
        ),
    ] = None,
    seq_len: Annotated[
        int | None,
        typer.Option(
            "--seq-len",
            metavar="TOKENS",
            help="Tokens of a sample (default: the model's block).",
            rich_help_panel=_RUN,
        ),
    ] = None,
    model: ModelOptions,
    output_format: Annotated[
        str, typer.Option("--format", metavar="NAME", help="text, json, github or sarif.", rich_help_panel=_OUTPUT)
    ] = "text",
    severity: Annotated[
        str, typer.Option("--severity", metavar="NAME", help="Show error, warning or note.", rich_help_panel=_OUTPUT)
    ] = "warning",
    strict: Annotated[bool, typer.Option("--strict", help="Fail on warnings, too.", rich_help_panel=_OUTPUT)] = False,
    fix: Annotated[
        bool, typer.Option("--fix", help="Write the changes that are safe, and show them.", rich_help_panel=_OUTPUT)
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a JSON document: --format json.", rich_help_panel=_OUTPUT)
    ] = False,
) -> int:
    """Find what is wrong in DeepSpeed configurations, with line, column and what to write instead.

    Examples:
    dsplan check ds_config.json
    dsplan check ds_config.json --world-size 4 --model gpt2-xl --gpu a100-40gb
    dsplan check configs/*.json accelerate.yaml --format github --strict

    Exit codes:
    0 nothing is wrong (with --strict: and no warning);
    1 something is;
    2 bad input.
    """
    from dsplan.check.configuration import Run
    from dsplan.check.finding import ERROR, NOTE, SEVERITIES, WARNING, at_least
    from dsplan.check.run import check_files
    from dsplan.dsconfig.consumers import CONSUMERS
    from dsplan.report.findings import REPORTS

    if as_json:
        if output_format not in ("text", "json"):
            raise InputError(f"--json and --format {output_format} contradict each other; give one of them")
        output_format = "json"
    threshold = choice("--severity", severity, SEVERITIES)
    run = Run(
        consumer=choice("--for", consumer, CONSUMERS),
        world_size=_positive("--world-size", world_size),
        model=_model(model),
        cluster=_cluster(gpu, device_memory, world_size),
        sequence_length=_positive("--seq-len", seq_len),
        notes=threshold == NOTE,
    )
    report = REPORTS[choice("--format", output_format, REPORTS)]
    for flag, given in (("--gpu", gpu), ("--device-memory", device_memory), ("--seq-len", seq_len)):
        if given is not None and run.model is None:
            raise InputError(f"{flag} {given}: what fits depends on the model; name one with --model")
    if run.model is not None and seq_len is not None and seq_len > run.model.max_position_embeddings:
        raise InputError(
            f"--seq-len: {seq_len} is longer than the {run.model.max_position_embeddings} positions of the model"
        )
    for path in files:
        if not path.exists():
            hint = "; standard input is /dev/stdin" if str(path) == "-" else ""
            raise InputError(f"{path}: cannot be read: there is no such file{hint}")
    checked = check_files(files, run)
    if fix:
        checked = _fix(checked, run)
    typer.echo(report(checked, [finding for finding in checked.findings if at_least(finding.severity, threshold)]))
    fails = WARNING if strict else ERROR
    return EXIT_FINDINGS if any(at_least(finding.severity, fails) for finding in checked.findings) else EXIT_OK


def _fix(checked: Checked, run: Run) -> Checked:
    """Write the safe replacements, show them on standard error, and check again."""
    from dsplan.check.fix import fixed
    from dsplan.check.run import check_files
    from dsplan.files import write_text

    for path in dict.fromkeys(finding.path for finding in checked.findings if finding.edit is not None):
        text, difference = fixed(path, checked.findings)
        write_text(path, text, force=True)
        typer.echo(difference, err=True, nl=False)
    return check_files(checked.paths, run)


def _model(options: ModelOptions) -> ModelShape | None:
    if options == ModelOptions():
        return None
    from dsplan.cli.model_input import read_model_options

    return read_model_options(options).shape


def _cluster(gpu: str | None, device_memory: str | None, world_size: int | None) -> Cluster | None:
    """The machines: the named device, as many as there are ranks, eight to a node."""
    if gpu is None and device_memory is None:
        return None
    from dsplan.cli.machine_input import read_machine_options
    from dsplan.cli.options import MachineOptions

    ranks = world_size or 1
    if ranks > _MOST_RANKS:
        raise InputError(f"--world-size: {ranks} is not allowed; at most {_MOST_RANKS:,}")
    nodes = ranks // _GPUS_PER_NODE if ranks > _GPUS_PER_NODE and ranks % _GPUS_PER_NODE == 0 else 1
    return read_machine_options(MachineOptions(gpus=ranks // nodes, nodes=nodes, gpu=gpu, device_memory=device_memory))


def _positive(flag: str, value: int | None) -> int | None:
    if value is not None:
        require_positive(flag, value)
    return value
