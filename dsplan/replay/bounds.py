"""Lower bounds: bytes that a rank's device must hold at once, however cleverly a stage is implemented.

Only what lives through a whole step counts: the rank's share of the parameters, of the fp32 master and of Adam's two
moments, in so far as they are not offloaded. Gradients, activations, buckets and gathered layers come on top.

Legend: Ψ parameters, N ranks, e bytes of a model element.
"""

from __future__ import annotations

from dataclasses import dataclass

from dsplan.replay.cases import Case
from dsplan.units import ceil_div
from dsplan.workload import PRECISION_BYTES

STAGE_OF_STATES = 1
STAGE_OF_PARAMETERS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One summand of a bound, with its formula."""

    name: str
    formula: str
    size_bytes: int


def lower_bound(case: Case) -> tuple[Part, ...]:
    """What has to be on the device all the time; the bound is the sum."""
    psi, ranks = case.model.num_parameters, case.world_size
    e = 4 if case.zero is None else PRECISION_BYTES[case.precision]
    stage = 0 if case.zero is None else case.zero.stage
    states = ranks if stage >= STAGE_OF_STATES else 1
    parameters = ranks if stage >= STAGE_OF_PARAMETERS else 1
    share = "" if parameters == 1 else f"/{ranks}"
    parts = []
    if case.zero is None or not case.zero.offloads_parameters:
        parts.append(Part(name="parameters", formula=f"{e}Ψ{share}", size_bytes=ceil_div(e * psi, parameters)))
    if case.zero is None or not case.zero.offloads_optimizer:
        share = "" if states == 1 else f"/{ranks}"
        if e != 4:
            parts.append(Part(name="fp32 master", formula=f"4Ψ{share}", size_bytes=ceil_div(4 * psi, states)))
        parts.append(Part(name="Adam's moments", formula=f"8Ψ{share}", size_bytes=ceil_div(8 * psi, states)))
    return tuple(parts)
