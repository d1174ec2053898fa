"""The gate of ``estimate --require``: whether the verdict is the one that a job needs."""

from __future__ import annotations

from dsplan.errors import InputError, choice
from dsplan.estimate import FITS, TIGHT, Estimate
from dsplan.hardware import Cluster

#: What each wanted verdict is satisfied by.
GATES = {FITS: (FITS,), TIGHT: (FITS, TIGHT)}


def read_gate(text: str, cluster: Cluster) -> str:
    """The verdict that ``--require`` asks for.

    Raises:
        InputError: there is no such verdict, or no device to have one of.
    """
    wanted = choice("--require", text, GATES)
    require_memory(f"--require {wanted}", "there is no verdict without a device", cluster)
    return wanted


def require_memory(flag: str, why: str, cluster: Cluster) -> None:
    """Raise InputError where no device is known, or not how much memory it has, which ``flag`` is about."""
    if cluster.accelerator is None or cluster.accelerator.usable_bytes is None:
        raise InputError(f"{flag}: {why}; name one with --gpu")


def unasked(wanted: str, cluster: Cluster) -> str:
    """What an open gate says nothing of, in one line; empty where it says all."""
    if cluster.host_memory_bytes is not None:
        return ""
    return f"--require {wanted}: nothing is said of CPU memory, which is not known; give it with --host-memory"


def missed(wanted: str, estimate: Estimate) -> str | None:
    """Why the gate is closed, in one line; None where it is open.

    It is about the one plan that ``--plan`` or ``--ds-config`` names; of several, about the best.
    """
    satisfying = GATES[wanted]
    if any(row.verdict in satisfying for row in estimate.plans):
        return None
    if len(estimate.plans) == 1:
        row = estimate.plans[0]
        return f"--require {wanted}: {row.plan.name}: {row.verdict}: {row.reason}"
    tight = [row.plan.name for row in estimate.plans if row.verdict == TIGHT]
    rest = f"; {', '.join(tight)} {'is' if len(tight) == 1 else 'are'} tight" if tight else ""
    return f"--require {wanted}: none of the {len(estimate.plans)} plans does{rest}"
