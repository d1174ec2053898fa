"""Plan: one complete way to train: what DeepSpeed is told, apart from the model and the machines."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from dsplan.errors import InputError, choice
from dsplan.workload import CheckpointOptions, Workload
from dsplan.zero import ZeroConfig

#: Optimizers that DeepSpeed updates on the CPU itself (runtime/engine.py, _configure_basic_optimizer).
CPU_OPTIMIZERS = ("adamw", "adam", "lion", "adagrad", "muon")

#: Stage 3 refuses Muon together with ``reduce_scatter`` (runtime/zero/stage3.py, __init__).
_STAGE_WITHOUT_SCATTER = 3

#: Optimizers that torch.optim has, which DDP uses without DeepSpeed.
TORCH_OPTIMIZERS = ("adamw", "adam", "sgd", "adagrad")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A named strategy: ZeRO section, workload, clipping.

    Attributes:
        name: e.g. ``zero2``, ``zero3-offload-optimizer-ckpt``.
        gradient_clipping: DeepSpeed's ``gradient_clipping``; 0 disables it.
        torch_adam: ``optimizer.params.torch_adam``: torch's AdamW in place of DeepSpeed's fused one.
        ddp: torch's DistributedDataParallel with native AMP in place of DeepSpeed; ``zero`` says nothing then.
        checkpointing: what DeepSpeed's activation checkpointing does with a block's input, where the model calls it.
        torch_autocast: DeepSpeed's ``torch_autocast``: the precision of what autocast lowers; the workload's is fp32.
    """

    name: str
    zero: ZeroConfig = field(default_factory=ZeroConfig)
    workload: Workload = field(default_factory=Workload)
    gradient_clipping: float = 1.0
    torch_adam: bool = False
    ddp: bool = False
    checkpointing: CheckpointOptions = field(default_factory=CheckpointOptions)
    torch_autocast: str | None = None

    def __post_init__(self) -> None:
        if self.workload.activation_checkpointing != "deepspeed":  # nobody reads it, so that equal plans compare equal
            object.__setattr__(self, "checkpointing", CheckpointOptions())
        if self.workload.optimizer == "muon" and self.zero.stage == _STAGE_WITHOUT_SCATTER:
            # Not said in a configuration it is refused there (dsplan.dsconfig.engine_rules); a plan of ours says it.
            object.__setattr__(self, "zero", replace(self.zero, reduce_scatter=False))
        if self.ddp and self.zero.stage != 0:
            raise InputError(f"zero_optimization.stage: {self.zero.stage} is not allowed; ddp partitions nothing")
        if self.ddp and self.workload.optimizer not in TORCH_OPTIMIZERS:
            raise InputError(
                f"optimizer: torch has no {self.workload.optimizer}; with ddp use one of {', '.join(TORCH_OPTIMIZERS)}"
            )
        if self.zero.offloads_optimizer and self.workload.optimizer not in CPU_OPTIMIZERS:
            raise InputError(
                f"optimizer: {self.workload.optimizer} has no CPU version in DeepSpeed; "
                f"with offload_optimizer use one of {', '.join(CPU_OPTIMIZERS)}"
            )
        if self.torch_autocast is not None:
            self._require_autocast(self.torch_autocast)
        if self.gradient_clipping < 0:
            raise InputError(f"gradient_clipping: {self.gradient_clipping} is not allowed; it must not be negative")

    def _require_autocast(self, dtype: str) -> None:
        choice("torch_autocast.dtype", dtype, ("fp16", "bf16"))
        if self.ddp:
            raise InputError("torch_autocast: is DeepSpeed's; ddp lowers to the precision of the workload")
        if self.workload.precision != "fp32":
            raise InputError(f"torch_autocast: the weights stay fp32; {self.workload.precision} does not go with it")
        for key in ("grad_accum_dtype", "communication_data_type"):
            if getattr(self.workload, key) is not None:
                raise InputError(f"{key}: is not modelled together with torch_autocast")
