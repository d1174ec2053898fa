"""What a search found: as tables, as a document (``schemas/search.schema.json``), and its front as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from dsplan import __version__
from dsplan.recommend import whole_context
from dsplan.report.console import print_table
from dsplan.report.header import header_lines
from dsplan.report.scatter import Dot, scatter
from dsplan.search.result import Candidate, SearchResult, WhatIf
from dsplan.units import GIB, format_bytes

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from dsplan.workload import Workload

SCHEMA_VERSION = 1
#: Columns of a terminal from which on the part that takes longest is shown too.
WIDE = 110


def print_search(
    console: Console, result: SearchResult, inferred: str | None = None, *, asked: Workload | None = None
) -> None:
    """The winner, the runners-up, the front, why not the others, and what another machine would allow.

    ``asked`` is the workload that the options say, for the lines above when nothing fits.
    """
    winner = result.winner
    workload, cluster = (asked, result.cluster) if winner is None else (winner.plan.workload, winner.cluster)
    if workload is not None:
        for line in header_lines(result.model, workload, cluster, inferred):
            console.print(line)
        console.print()
    if winner is not None:
        print_table(console, _table([winner, *result.runners_up], marked=True, wide=console.width >= WIDE))
        console.print()
        console.print(
            "GPU: what the driver shows at least at the peak. left: the rest, of which the allocator's fragmentation "
            "takes a part."
        )
        console.print(_conclusion(result), style="bold")
        for line in _settings(winner):
            console.print(line)
    else:
        whole = "" if workload is None else whole_context(result.model, workload)
        console.print(
            f"Nothing fits; use more or larger devices, a shorter sequence or another model{whole}", style="bold"
        )
    if len(result.front) > 1:
        console.print("\nMemory against speed: nothing else is both smaller and faster.\n")
        print_table(console, _table(result.front, marked=False, wide=console.width >= WIDE))
    if result.rejected:
        console.print("\nWhy not:")
    for one in result.rejected:
        terms = ", ".join(f"{name} {format_bytes(size)}" for name, size in one.terms)
        console.print(f"  {one.strategy}: {one.why}" + (f" ({terms})" if terms else ""))
    _print_what_if(console, result.what_if)
    origin = "measured" if result.measured else "from data sheets; dsplan verify --calibrate measures this machine"
    console.print(f"\n{result.num_candidates:,} candidates; times by the profile {result.profile}, {origin}.")


def _print_what_if(console: Console, others: Sequence[WhatIf]) -> None:
    if others:
        console.print("\nWhat if:")
    for other in others:
        if other.best is None:
            console.print(f"  {other.change}: nothing fits either")
        elif other.gain is None:
            console.print(f"  {other.change}: {other.best.plan.name} would fit")
        else:
            size = other.best.plan.workload.micro_batch_size
            console.print(
                f"  {other.change}: {other.best.plan.name} with micro batch {size}, {100 * other.gain:+.1f} % tokens/s"
            )


def _table(candidates: Sequence[Candidate], *, marked: bool, wide: bool) -> Table:
    from rich.table import Table

    several = len({candidate.cluster.world_size for candidate in candidates}) > 1
    table = Table(box=None, pad_edge=False, padding=(0, 2 if wide else 1, 0, 0), header_style="bold")
    table.add_column("\n  strategy", no_wrap=True)
    heads = ("micro\nbatch", "accu-\nmulate", "step\nms", "\ntokens/s", "MFU\n%", "GPU\nGiB", "left\nGiB")
    for head in ("\nGPUs", *heads) if several else heads:
        table.add_column(head, justify="right", no_wrap=True)
    if wide:
        table.add_column("\nmostly", no_wrap=True)
    for number, candidate in enumerate(candidates):
        workload, time = candidate.plan.workload, candidate.time
        utilisation = time.model_flops_utilisation
        cells = [
            ("* " if marked and number == 0 else "  ") + candidate.plan.name,
            *([str(candidate.cluster.world_size)] if several else []),
            str(workload.micro_batch_size),
            str(workload.gradient_accumulation_steps),
            f"{1e3 * time.seconds:,.0f}",
            f"{time.tokens_per_s:,.0f}",
            "?" if utilisation is None else f"{100 * utilisation:.1f}",
            _gib(candidate.device_bytes),
            _gib(candidate.headroom_bytes),
        ]
        table.add_row(*cells, *([time.dominant] if wide else []))
    return table


def _gib(size: int | None) -> str:
    return "?" if size is None else f"{size / GIB:.1f}"


def _conclusion(result: SearchResult) -> str:
    winner = result.winner
    assert winner is not None
    best = {"speed": "the fastest", "headroom": "the most memory left", "cost": "the cheapest per token"}
    text = f"Recommended: {winner.plan.name}, micro batch {winner.plan.workload.micro_batch_size}"
    return f"{text}: {best[result.objective]} that fits"


def _settings(winner: Candidate) -> list[str]:
    """What a DeepSpeed configuration has to say for it."""
    zero, workload = winner.plan.zero, winner.plan.workload
    parts = [f"train_micro_batch_size_per_gpu {workload.micro_batch_size}"]
    parts.append(f"gradient_accumulation_steps {workload.gradient_accumulation_steps}")
    if zero.stage:
        parts.append(f"reduce_bucket_size {zero.reduce_bucket_size}")
        parts.append(f"overlap_comm {str(zero.overlaps_communication).lower()}")
    if zero.stage == 3:
        parts.append(f"stage3_prefetch_bucket_size {zero.stage3_prefetch_bucket_size}")
        parts.append(f"stage3_param_persistence_threshold {zero.stage3_param_persistence_threshold}")
    return [f"  {part}" for part in parts]


def search_document(result: SearchResult) -> dict[str, Any]:
    """The whole result; bytes and seconds."""
    return {
        "schema_version": SCHEMA_VERSION,
        "dsplan_version": __version__,
        "model": {"name": result.model.name, "num_parameters": result.model.num_parameters},
        "cluster": {
            "accelerator": None if result.cluster.accelerator is None else result.cluster.accelerator.name,
            "gpus_per_node": result.cluster.gpus_per_node,
            "num_nodes": result.cluster.num_nodes,
            "host_memory_bytes": result.cluster.host_memory_bytes,
        },
        "objective": result.objective,
        "profile": result.profile,
        "measured": result.measured,
        "num_candidates": result.num_candidates,
        "winner": None if result.winner is None else candidate_document(result.winner),
        "runners_up": [candidate_document(candidate) for candidate in result.runners_up],
        "front": [candidate_document(candidate) for candidate in result.front],
        "rejected": [
            {**asdict(one), "terms": [{"name": name, "size_bytes": size} for name, size in one.terms]}
            for one in result.rejected
        ],
        "what_if": [
            {
                "change": other.change,
                "best": None if other.best is None else candidate_document(other.best),
                "gain": other.gain,
            }
            for other in result.what_if
        ],
    }


def candidate_document(candidate: Candidate) -> dict[str, Any]:
    """One candidate with its workload, its buckets, its time and its memory."""
    zero, workload, time = candidate.plan.zero, candidate.plan.workload, candidate.time
    return {
        "strategy": candidate.plan.name,
        "world_size": candidate.cluster.world_size,
        "micro_batch_size": workload.micro_batch_size,
        "gradient_accumulation_steps": workload.gradient_accumulation_steps,
        "activation_checkpointing": workload.activation_checkpointing,
        "reduce_bucket_size": zero.reduce_bucket_size,
        "overlap_comm": zero.overlaps_communication,
        "stage3_prefetch_bucket_size": zero.stage3_prefetch_bucket_size,
        "stage3_param_persistence_threshold": zero.stage3_param_persistence_threshold,
        "step_seconds": time.seconds,
        "forward_seconds": time.forward_s,
        "backward_seconds": time.backward_s,
        "update_seconds": time.update_s,
        "parts_seconds": time.parts,
        "dominant": time.dominant,
        "tokens_per_s": time.tokens_per_s,
        "model_flops_utilisation": time.model_flops_utilisation,
        "device_bytes": candidate.device_bytes,
        "host_bytes": candidate.host_bytes,
        "headroom_bytes": candidate.headroom_bytes,
    }


def front_picture(result: SearchResult) -> str:
    """Memory against speed as SVG: the front, the winner and the runners-up."""
    ends = [] if result.winner is None else [result.winner, *result.runners_up]
    dots = [_dot(candidate) for candidate in (*result.front, *ends)]
    return scatter(
        dots,
        title=f"{result.model.name} on {result.cluster.world_size} GPUs: memory against speed",
        x_label="GPU memory, GiB",
        y_label="tokens per second",
        joined=[_dot(candidate) for candidate in result.front],
    )


def _dot(candidate: Candidate) -> Dot:
    size = candidate.plan.workload.micro_batch_size
    return Dot(
        x=(candidate.device_bytes or 0) / GIB,
        y=candidate.tokens_per_s,
        group=candidate.plan.name,
        title=f"{candidate.plan.name}, micro batch {size}: {candidate.tokens_per_s:,.0f} tokens/s",
    )
