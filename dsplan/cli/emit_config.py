"""``dsplan emit-config``: a strategy in the words of its reader, checked before it is written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dsplan.cli.completion import formats, plans
from dsplan.cli.emit_plan import Chosen, choose_plan
from dsplan.cli.flags import naming_flags
from dsplan.cli.options import JsonOption, MachineOptions, ModelOptions, WorkloadOptions
from dsplan.cli.progress import waiting
from dsplan.errors import InputError, RunError, choice

if TYPE_CHECKING:
    from dsplan.dsconfig.reasons import Reason
    from dsplan.dsconfig.versions import VersionChange

_DEFAULT = Path("ds_config.json")


def emit_config(
    *,
    model: ModelOptions,
    workload: WorkloadOptions,
    machine: MachineOptions,
    strategy: Annotated[
        str | None,
        typer.Option(
            "--strategy", metavar="NAME", autocompletion=plans, help="This strategy instead of the recommended one."
        ),
    ] = None,
    format_name: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="NAME",
            autocompletion=formats,
            help="Who reads it: deepspeed, hf, accelerate or lightning; launch writes the scripts that start it.",
        ),
    ] = "deepspeed",
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Where to write it (default ds_config.json); what belongs to it is written beside it.",
        ),
    ] = None,
    from_file: Annotated[
        Path | None,
        typer.Option("--from", metavar="FILE", help="Improve this configuration, as --format's reader reads it."),
    ] = None,
    deepspeed_version: Annotated[
        str | None,
        typer.Option(
            "--deepspeed-version", metavar="X.Y.Z", help="Write it for this release (default: the newest known)."
        ),
    ] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Say of every value why it is what it is, and what it costs in bytes.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite files.")] = False,
    to_stdout: Annotated[bool, typer.Option("--stdout", help="Print the main document and write no file.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Write the recommended strategy, or a named one, for DeepSpeed, HF Trainer, accelerate or Lightning.

    Examples:
    dsplan emit-config --model gpt2-xl --gpus 4 --gpu a100-40gb
    dsplan emit-config --model qwen3-0.6b --gpu rtx-4090 --strategy zero2-offload --format hf
    dsplan emit-config --model gpt2-xl --gpus 4 --gpu h100 --from ds_config.json -o better.json
    """
    from dsplan.dsconfig.consumers import CONSUMERS
    from dsplan.dsconfig.drive import drive_note
    from dsplan.dsconfig.formats import FORMATS, render
    from dsplan.dsconfig.formats.target import Target
    from dsplan.dsconfig.formats.together import require_targets, write_together
    from dsplan.dsconfig.versions import parse_version
    from dsplan.files import require_target
    from dsplan.report.emitted import Emitted, show_emitted

    if to_stdout and (output is not None or as_json):
        raise InputError(f"--stdout and {'--json' if as_json else '--output'} contradict each other; give one of them")
    format_name = choice("--format", format_name, FORMATS)
    # Launch lines are there to be read; a file is made of them only when one is asked for.
    writes = not to_stdout and (output is not None or format_name != "launch")
    consumer = format_name if format_name in CONSUMERS else None
    if deepspeed_version is not None:
        with naming_flags():
            parse_version(deepspeed_version)
    if writes:  # the rest of the files is known later; this one is asked for before the work begins
        require_target(output or _DEFAULT, force=force)
    chosen = choose_plan(model, workload, machine, strategy=strategy, from_file=from_file, consumer=consumer)
    document = _document(chosen, deepspeed_version)
    said, changes = _for_version(document, deepspeed_version)
    emission = render(
        format_name,
        Target(
            plan=chosen.row.plan,
            model=chosen.inputs.model,
            cluster=chosen.inputs.cluster,
            document=said,
            output=output or _DEFAULT,
        ),
    )
    if note := drive_note(document, machine.nvme_path):
        emission = replace(emission, notes=(*emission.notes, note))
    if writes:
        # write_together would say so too, but only after DeepSpeed's check.
        require_targets([file.path for file in emission.files], force=force)
    # As the newest release has it: an older one may know keys that this one's parser refuses.
    checked = _check(document, chosen.inputs.cluster.world_size)
    if to_stdout:
        row = chosen.row
        if row.reason:  # it is tight, or does not fit
            typer.echo(f"dsplan: warning: {row.plan.name}: {row.verdict}: {row.reason}", err=True)
        if note:
            typer.echo(f"dsplan: warning: {note}", err=True)
        typer.echo(emission.main, nl=False)
        return
    if writes:
        write_together(emission.files, force=force)
    emitted = Emitted(
        emission=emission,
        written=writes,
        estimate=chosen.estimate,
        row=chosen.row,
        recommended=chosen.recommended,
        checked_by_deepspeed=checked,
        deepspeed_version=deepspeed_version,
        version_changes=changes,
        improvement=chosen.improvement,
        read=chosen.inputs.ds_config,
        reasons=_reasons(chosen, document) if explain else None,
    )
    show_emitted(emitted, as_json=as_json)


def _document(chosen: Chosen, version: str | None) -> dict[str, Any]:
    """What DeepSpeed of the newest release reads: a file's as it was improved, or the plan's."""
    from dsplan.dsconfig.emit import COSINE, LINEAR, emit

    if chosen.improvement is not None:
        return dict(chosen.improvement.resolved)
    scheduler = COSINE
    if version is not None:
        from dsplan.dsconfig.versions import allows

        with naming_flags():
            scheduler = COSINE if allows("scheduler.type", COSINE, version) else LINEAR
    return emit(chosen.row.plan, chosen.inputs.model, chosen.inputs.cluster, scheduler=scheduler)


def _for_version(
    document: Mapping[str, Any], version: str | None
) -> tuple[Mapping[str, Any], tuple[VersionChange, ...]]:
    if version is None:
        return document, ()
    from dsplan.dsconfig.versions import for_version

    with naming_flags():
        return for_version(document, version)


def _reasons(chosen: Chosen, document: Mapping[str, Any]) -> tuple[Reason, ...]:
    from dsplan.report.reasons import reasons_of

    return reasons_of(chosen.row.plan, chosen.inputs.model, chosen.inputs.cluster, document)


def _check(document: Mapping[str, Any], world_size: int) -> bool:
    """Whether DeepSpeed's own parser took ``document``; False when it could not be asked.

    Raises:
        InputError: the schema or the parser refuses it, which is a mistake of dsplan.
    """
    from tempfile import TemporaryDirectory

    from dsplan.dsconfig.deepspeed_parser import check_with_deepspeed
    from dsplan.dsconfig.schema import validate

    mistakes = validate(document)
    if mistakes:
        raise InputError(f"the configuration is not valid, please report this: {'; '.join(mistakes)}")
    with TemporaryDirectory(prefix="dsplan-") as folder, waiting("Asking DeepSpeed's parser"):
        candidate = Path(folder) / _DEFAULT.name
        candidate.write_text(json.dumps(document), encoding="utf-8")
        try:
            result = check_with_deepspeed(candidate, world_size)
        except RunError as error:
            # A DeepSpeed that does not start here says nothing about the file, which may be for another machine.
            typer.echo(f"dsplan: warning: {error}; checked against the schema only", err=True)
            return False
    if result is not None and not result.accepted:
        raise InputError(f"DeepSpeed refuses the configuration, please report this: {result.error}")
    return result is not None
