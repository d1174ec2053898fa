"""Recommend: which of the compared plans to take.

The rule of this version: the first plan that fits in the order of ``dsplan.strategies``: no offload
before offload, no recomputation before recomputation, less communication before more. Where no
device was named, a plan has to fit the card that most clusters have.
"""

from __future__ import annotations

from collections.abc import Sequence

from dsplan.catalogue import accelerator
from dsplan.hardware import Cluster

#: The card that stands for the user's where none was named.
REFERENCE_CARD = "a100-80gb"


def recommend(rows: Sequence[tuple[str, str, tuple[str, ...]]], cluster: Cluster) -> tuple[str | None, str]:
    """Name of the plan to take, or None, and the reason.

    Args:
        rows: (name, verdict, catalogued cards that it fits) of each plan, fastest first.
        cluster: the machines; without an accelerator the cards decide.
    """
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
