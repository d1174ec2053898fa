"""What is trained and how: batch, sequence, precision, optimizer, activation checkpointing."""

from __future__ import annotations

from dataclasses import dataclass

from dsplan.errors import InputError, choice, require_positive

PRECISIONS = ("fp32", "fp16", "bf16")
ACTIVATION_CHECKPOINTING = ("none", "torch", "deepspeed")

PRECISION_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}
_PRECISION_ALIASES = {
    "32": "fp32",
    "16": "fp16",
    "float32": "fp32",
    "float16": "fp16",
    "half": "fp16",
    "bfloat16": "bf16",
}

#: Optimizers as DeepSpeed's configuration names them, by the name used on dsplan's command line.
OPTIMIZERS = {
    "adamw": "AdamW",
    "adam": "Adam",
    "sgd": "SGD",
    "lion": "Lion",
    "adagrad": "Adagrad",
    "muon": "Muon",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointOptions:
    """DeepSpeed's ``activation_checkpointing`` section, of which ``torch.utils.checkpoint`` knows nothing.

    Attributes:
        partition_activations: each checkpointed input is copied, and cut among model-parallel ranks, of which there
            is one here.
        cpu_checkpointing: checkpointed inputs wait on the host.
        contiguous_memory_optimization: the copies lie in buffers that are made with the first of them.
        number_checkpoints: how many such buffers; None: as many as the model has blocks. Read with
            ``contiguous_memory_optimization`` only.
    """

    partition_activations: bool = False
    cpu_checkpointing: bool = False
    contiguous_memory_optimization: bool = False
    number_checkpoints: int | None = None

    def __post_init__(self) -> None:
        if self.contiguous_memory_optimization and not self.partition_activations:
            raise InputError("activation_checkpointing.contiguous_memory_optimization: needs partition_activations")
        if self.number_checkpoints is not None:
            require_positive("activation_checkpointing.number_checkpoints", self.number_checkpoints)
            if not self.contiguous_memory_optimization:  # so that equal options compare equal
                object.__setattr__(self, "number_checkpoints", None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """One training job, the same on every rank.

    Attributes:
        micro_batch_size: samples that one rank feeds through one forward pass
            (DeepSpeed ``train_micro_batch_size_per_gpu``).
        sequence_length: tokens of one sample.
        gradient_accumulation_steps: micro batches between two optimizer steps.
        precision: ``fp32``, ``fp16`` (with loss scaling) or ``bf16``.
        optimizer: one of :data:`OPTIMIZERS`.
        grad_accum_dtype: precision in which gradients are accumulated (DeepSpeed ``data_types.grad_accum_dtype``);
            None: the model's.
        communication_data_type: precision in which gradients are reduced (DeepSpeed's key); None: the model's.
        activation_checkpointing: ``none``, ``torch`` (``torch.utils.checkpoint``, not reentrant) or
            ``deepspeed`` (``deepspeed.checkpointing.checkpoint``), around every transformer block.
    """

    micro_batch_size: int = 1
    sequence_length: int = 1024
    gradient_accumulation_steps: int = 1
    precision: str = "bf16"
    optimizer: str = "adamw"
    activation_checkpointing: str = "none"
    grad_accum_dtype: str | None = None
    communication_data_type: str | None = None

    def __post_init__(self) -> None:
        require_positive("micro_batch_size", self.micro_batch_size)
        require_positive("sequence_length", self.sequence_length)
        require_positive("gradient_accumulation_steps", self.gradient_accumulation_steps)
        choice("precision", self.precision, PRECISIONS)
        choice("optimizer", self.optimizer, OPTIMIZERS)
        for field in ("grad_accum_dtype", "communication_data_type"):
            value = getattr(self, field)
            if value is not None:
                choice(field, value, PRECISIONS)
            if value == self.precision:  # the default, so that equal workloads compare equal
                object.__setattr__(self, field, None)
        choice("activation_checkpointing", self.activation_checkpointing, ACTIVATION_CHECKPOINTING)

    @property
    def element_bytes(self) -> int:
        """Bytes of one parameter, activation or gradient element of the model."""
        return PRECISION_BYTES[self.precision]

    @property
    def accumulation_bytes(self) -> int:
        """Bytes of one accumulated gradient element."""
        return PRECISION_BYTES[self.grad_accum_dtype or self.precision]

    @property
    def communication_bytes(self) -> int:
        """Bytes of one gradient element while it is reduced."""
        return PRECISION_BYTES[self.communication_data_type or self.precision]


def parse_precision(text: str) -> str:
    """``fp32``, ``fp16`` or ``bf16`` from what people and older scripts write (``16`` is fp16)."""
    alias = _PRECISION_ALIASES.get(text.strip().casefold(), text.strip())
    return choice("precision", alias, PRECISIONS)


def parse_optimizer(text: str) -> str:
    """dsplan's name of the optimizer that DeepSpeed calls ``text`` (``AdamW`` -> ``adamw``)."""
    name = text.strip().casefold()
    if name not in OPTIMIZERS:
        raise InputError(f"optimizer: unknown value {text!r}; allowed: {', '.join(OPTIMIZERS)}")
    return name
