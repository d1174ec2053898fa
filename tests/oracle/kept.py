"""What the dry runs of a grid came to, a line of JSON for each configuration, so that a broken-off run goes on."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dsplan.workload import CheckpointOptions
from tests.oracle.compare import Difference, difference
from tests.oracle.grid import Case


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """One configuration; sizes in bytes.

    Attributes:
        name: ``SEED-NUMBER``; with the seed it can be made again.
        text: what it is, on one line.
        traits: ``stage``, ``offload``, ``precision``, ``checkpointing`` and what else the report is split by.
        phases: (step, phase, predicted, found) peak of tensors; the steps are ``init`` and the number of a step.
        allocated, pinned, pageable: (predicted, found); ``allocated`` as torch's allocator counts, over the steps.
    """

    name: str
    text: str
    traits: dict[str, str]
    rank: int
    phases: tuple[tuple[str, str, int, int], ...]
    allocated: tuple[int, int]
    pinned: tuple[int, int]
    pageable: tuple[int, int]
    seconds: float
    versions: dict[str, str]
    date: str

    @property
    def peak(self) -> tuple[int, int]:
        """(predicted, found) over the steps."""
        steps = [phase for phase in self.phases if phase[0] != "init"]
        return max(phase[2] for phase in steps), max(phase[3] for phase in steps)


def kept_of(each: Difference, text: str, versions: dict[str, str], date: str) -> Kept:
    """The numbers of one comparison."""
    workload, zero = each.case.plan.workload, each.case.plan.zero
    autocast = each.case.plan.torch_autocast
    offload = [name for name, there in (("o", zero.offloads_optimizer), ("p", zero.offloads_parameters)) if there]
    return Kept(
        name=each.case.name,
        text=text,
        traits={
            "stage": str(zero.stage),
            "offload": {"": "none", "o": "optimizer", "p": "parameters", "op": "both"}["".join(offload)],
            "precision": f"autocast {autocast}" if autocast else workload.precision,
            "gradients": "in fp32" if workload.grad_accum_dtype else "as the model",
            "checkpointing": workload.activation_checkpointing,
            "inputs of blocks": _inputs(each.case.plan.checkpointing),
            "hpZ": "on" if zero.zero_hpz_partition_size > 1 else "off",
            "attention": each.case.model.attention,
        },
        rank=each.rank,
        phases=tuple((phase.step, phase.phase, phase.predicted_peak, phase.found_peak) for phase in each.phases),
        allocated=(each.predicted_allocated, each.found_allocated),
        pinned=(each.predicted_pinned, each.found_pinned),
        pageable=(each.predicted_pageable, each.found_pageable),
        seconds=round(each.seconds, 1),
        versions=versions,
        date=date,
    )


def predicted_again(kept: Kept, case: Case) -> Kept:
    """What the dry run found, beside what the formulas say today."""
    found = [
        {
            "step": step,
            "phase": phase,
            "tensor_peak_bytes": peak,
            "tensor_level_bytes": 0,  # not kept
            "bytes": kept.allocated[1],
        }
        for step, phase, _, peak in kept.phases
    ]
    host = {"pinned_bytes": kept.pinned[1], "pageable_bytes": kept.pageable[1]}
    record = {"rank": kept.rank, "dry_run": {"peaks": found, "host": host, "seconds": kept.seconds}}
    return kept_of(difference(case, record), kept.text, kept.versions, kept.date)


def _inputs(options: CheckpointOptions) -> str:
    """Where DeepSpeed's activation checkpointing keeps them."""
    kind = "in buffers" if options.contiguous_memory_optimization else "copied"
    names = [kind] if options.partition_activations else []
    return " ".join([*names, *(["on the host"] if options.cpu_checkpointing else [])]) or "as they are"


def read_kept(path: Path) -> list[Kept]:
    """Everything in the file; a last line that was not finished is left out."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [_kept(json.loads(line)) for line in lines if line.endswith("\n")]


def _kept(document: dict[str, Any]) -> Kept:
    for pair in ("allocated", "pinned", "pageable"):
        document[pair] = tuple(document[pair])
    document["phases"] = tuple((step, phase, int(a), int(b)) for step, phase, a, b in document["phases"])
    return Kept(**document)


def write_kept(path: Path, found: Iterable[Kept]) -> None:
    """The whole file anew, whole or not at all."""
    text = "".join(json.dumps(asdict(each), separators=(",", ":")) + "\n" for each in found)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
