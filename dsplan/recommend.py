"""Recommend: which of the compared plans to take.

The rule of this version: the first plan that fits in the order of ``dsplan.strategies``: no offload
before offload, no recomputation before recomputation, less communication before more. A plan that needs
a drive which nobody named comes after all others. Where no device was named, a plan has to fit the card
that most clusters have.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from dsplan.catalogue import accelerator
from dsplan.hardware import Cluster
from dsplan.model import ModelShape
from dsplan.workload import Workload
from dsplan.zero import ZeroConfig

#: The card that stands for the user's where none was named.
REFERENCE_CARD = "a100-80gb"


def recommend(
    rows: Sequence[tuple[str, str, tuple[str, ...]]], cluster: Cluster, *, lacks_drive: Collection[str] = ()
) -> tuple[str | None, str]:
    """Name of the plan to take, or None, and the reason.

    Args:
        rows: (name, verdict, catalogued cards that it fits) of each plan, fastest first.
        cluster: the machines; without an accelerator the cards decide.
        lacks_drive: names of the plans that swap to a drive of which no folder is known.
    """
    possible = [row for row in rows if row[0] not in lacks_drive]
    name, reason = _first(possible, cluster)
    return _first(rows, cluster) if name is None else (name, reason)


def _first(rows: Sequence[tuple[str, str, tuple[str, ...]]], cluster: Cluster) -> tuple[str | None, str]:
    if cluster.accelerator is None:
        return _without_device(rows)
    for wanted, remark in (("fits", ""), ("tight", "; nothing fits with room for fragmentation")):
        for index, (name, verdict, _) in enumerate(rows):
            if verdict == wanted:
                verb = "fits" if wanted == "fits" else "may fit"
                return name, f"the fastest that {verb}{_passed_over([row[0] for row in rows[:index]])}{remark}"
    return None, "no strategy fits; use more or larger devices, a shorter sequence or a smaller micro batch"


def _passed_over(names: Sequence[str]) -> str:
    if not names:
        return ""
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return f"; {shown} would be faster and {'does' if len(names) == 1 else 'do'} not"


def _without_device(rows: Sequence[tuple[str, str, tuple[str, ...]]]) -> tuple[str | None, str]:
    reference = accelerator(REFERENCE_CARD)
    for name, _, fits_on in rows:
        if reference.name in fits_on:
            return name, f"the fastest that fits {reference.label} cards (none was named; --gpu NAME asks for another)"
    for name, _, fits_on in rows:
        if fits_on:
            return name, f"the fastest that fits any catalogued card, from {accelerator(fits_on[0]).label} on"
    return None, "no strategy fits any catalogued device; use more devices or a shorter sequence"


def lacks_drive(zero: ZeroConfig) -> bool:
    """Whether the plan swaps to an NVMe drive of which nobody has named a folder."""
    return any(each.device == "nvme" and not each.nvme_path for each in (zero.offload_optimizer, zero.offload_param))


def whole_context(model: ModelShape, workload: Workload) -> str:
    """What to say where nothing fits and the samples are as long as the model takes, as they are unless told."""
    if workload.sequence_length < model.max_position_embeddings:
        return ""
    return f"; a sample has all the {workload.sequence_length:,} tokens that the model takes: --seq-len shortens it"
