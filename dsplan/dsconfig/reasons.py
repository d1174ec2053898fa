"""Why each value of a configuration is what it is, and what it costs.

No byte is written down here: a cost is the size of what is live at the peak, or the difference of two estimates,
one with the value and one without it (:mod:`dsplan.dsconfig.costs`; the rules are in
:mod:`dsplan.dsconfig.reason_rules`). A positive cost is memory that the value takes, a negative one what it saves.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from dsplan.dsconfig.auto import AUTO
from dsplan.dsconfig.costs import Costs
from dsplan.dsconfig.measured import EstimateRow
from dsplan.dsconfig.reason_rules import rule_of
from dsplan.hardware import Cluster
from dsplan.model import ModelShape
from dsplan.plan import Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """Why one value is what it is.

    Attributes:
        key: dotted.
        value: as it stands in the document.
        why: in a sentence.
        device_bytes: what it adds to (below 0: takes off) the allocated peak of the worst rank; None: no memory.
        host_bytes: the same of a node's CPU memory.
        source: the paper, or the file and function that makes it true.
    """

    key: str
    value: Any
    why: str
    device_bytes: int | None = None
    host_bytes: int | None = None
    source: str


def reasons(
    plan: Plan, model: ModelShape, cluster: Cluster, document: Mapping[str, Any], estimate_row: EstimateRow
) -> tuple[Reason, ...]:
    """One reason for every leaf of ``document``, in its order.

    Args:
        plan: what the document says.
        model: the model that it is for.
        cluster: the machines that it is for.
        document: the configuration, as :func:`dsplan.dsconfig.emit.emit` makes it or as a reader of
            ``"auto"`` wants it.
        estimate_row: the estimate of a plan on this cluster, with its terms.
    """
    costs = Costs(plan, model, cluster, estimate_row)
    return tuple(_reason(key, value, costs) for key, value in leaves(document))


def leaves(document: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of everything that is no section, in order; an empty section is a leaf."""
    for key, value in document.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _reason(key: str, value: Any, costs: Costs) -> Reason:
    why, cost, source = rule_of(key)(costs)
    if value == AUTO:
        why = f"the framework fills it in; {why}"
    return Reason(key=key, value=value, why=why, device_bytes=cost.device, host_bytes=cost.host, source=source)
