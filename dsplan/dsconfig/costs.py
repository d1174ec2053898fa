"""What a value of a configuration costs: what is live at the peak, or the difference of two estimates."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from dsplan.dsconfig.measured import EstimateRow, Row
from dsplan.hardware import Cluster
from dsplan.model import ModelShape
from dsplan.plan import Plan

DEVICE = "device"


@dataclass(frozen=True, slots=True)
class Cost:
    """Bytes on the device's peak and on a node's host; None is "no memory"."""

    device: int | None = None
    host: int | None = None


class Costs:
    """The plan's own estimate, and those that it is compared with."""

    def __init__(self, plan: Plan, model: ModelShape, cluster: Cluster, estimate_row: EstimateRow) -> None:
        self.plan = plan
        self.zero = plan.zero
        self.model = model
        self.cluster = cluster
        self._estimate_row = estimate_row
        self._rows: dict[Plan, Row] = {}
        self.row = self.of(plan)

    def of(self, plan: Plan) -> Row:
        """The estimate of ``plan``, made once."""
        if plan not in self._rows:
            self._rows[plan] = self._estimate_row(plan)
        return self._rows[plan]

    def difference(self, other: Plan, to: Plan | None = None) -> Cost:
        """What ``to`` (this plan) takes beyond ``other``."""
        mine, others = self.of(to or self.plan), self.of(other)
        return Cost(
            mine.device.peak_bytes - others.device.peak_bytes, mine.host.bytes_per_node - others.host.bytes_per_node
        )

    def against(self, **zero: Any) -> Cost:
        """What this plan takes beyond one whose ZeRO section differs by ``zero``."""
        return self.difference(replace(self.plan, zero=replace(self.zero, **zero)))

    def against_workload(self, **workload: Any) -> Cost:
        """What this plan takes beyond one whose workload differs by ``workload``."""
        return self.difference(replace(self.plan, workload=replace(self.plan.workload, **workload)))

    def live(self, *names: str) -> Cost:
        """What is live of these terms: on the device at its peak, on a node's host in the steady state."""
        found = [term for term in self.row.terms if term.name in names]
        device = sum(term.size_bytes for term in found if term.place == DEVICE)
        host = sum(term.size_bytes for term in found if term.place != DEVICE)
        return Cost(device, host * self.cluster.gpus_per_node)

    @property
    def peak(self) -> str:
        """Where the peak is, for a sentence."""
        device = self.row.device
        return "initialisation" if device.peak_step == "init" else f"the {device.peak_phase} ({device.peak_moment})"
