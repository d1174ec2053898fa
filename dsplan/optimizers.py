"""Optimizers: which one DeepSpeed builds, what it keeps per element and what it allocates in a step.

Source: DeepSpeed 0.19.8 runtime/engine.py (_configure_basic_optimizer, get_optimizer_configuration),
ops/adam, ops/lion, ops/adagrad; torch/optim for those that DeepSpeed takes from torch.
"""

from __future__ import annotations

from dataclasses import dataclass

from dsplan.errors import InputError
from dsplan.plan import Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimizer:
    """What one optimizer allocates, in tensors of the master parameters' size (fp32).

    Attributes:
        name: the class that DeepSpeed instantiates.
        num_states: fp32 tensors kept for every parameter tensor it updates.
        states_at_construction: they exist before the first step (torch Adagrad).
        foreach_temporaries: fp32 tensors of that size alive at the step's peak of torch's foreach form.
        single_temporaries: the same for torch's form that takes one tensor after the other.
        fused: DeepSpeed's FusedAdam, for which stage 0 uses its flat 16-bit optimizer.
    """

    name: str
    num_states: int
    states_at_construction: bool = False
    foreach_temporaries: int = 0
    single_temporaries: int = 0
    fused: bool = False

    def step_temporaries(self, *, foreach: bool) -> int:
        """Temporaries of the form that torch picks: foreach on accelerators (torch/optim/optimizer.py)."""
        return self.foreach_temporaries if foreach else self.single_temporaries


_TORCH_ADAMW = Optimizer(name="torch.optim.AdamW", num_states=2, foreach_temporaries=1, single_temporaries=2)


def device_optimizer(plan: Plan) -> Optimizer:
    """The optimizer that updates on the device."""
    kind = plan.workload.optimizer
    if kind in ("adam", "adamw"):
        if plan.torch_adam:
            return _TORCH_ADAMW
        return Optimizer(name="FusedAdam", num_states=2, fused=True)
    if kind == "muon":
        return Optimizer(name="MuonWithAuxAdam", num_states=2)  # Adam's; Muon's momentum: dsplan.engine.muon_*
    if kind == "lion":
        return Optimizer(name="FusedLion", num_states=1)
    if kind == "adagrad":
        return Optimizer(
            name="torch.optim.Adagrad",
            num_states=1,
            states_at_construction=True,
            foreach_temporaries=2,
            single_temporaries=1,
        )
    if kind == "sgd":
        return Optimizer(name="torch.optim.SGD", num_states=0)
    raise InputError(f"optimizer: {kind!r} is not modelled")


def backup_optimizer() -> Optimizer:
    """What updates the sub-groups that ``offload_optimizer.ratio`` leaves on the device (stage3.py __init__)."""
    return _TORCH_ADAMW


def host_optimizer(plan: Plan) -> Optimizer:
    """The optimizer that updates on the CPU when the states are offloaded."""
    kind = plan.workload.optimizer
    if kind in ("adam", "adamw"):
        return Optimizer(name="DeepSpeedCPUAdam", num_states=2)
    if kind == "muon":
        return Optimizer(name="MuonWithAuxAdam", num_states=2)  # Adam's; Muon's momentum: dsplan.engine.muon_*
    if kind == "lion":
        # ops/lion/cpu_lion.py allocates exp_avg_sq too, and never uses it.
        return Optimizer(name="DeepSpeedCPULion", num_states=2)
    if kind == "adagrad":
        return Optimizer(name="DeepSpeedCPUAdagrad", num_states=1)
    raise InputError(f"optimizer: {kind!r} has no CPU version in DeepSpeed")
