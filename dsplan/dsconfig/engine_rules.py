"""Combinations that DeepSpeed's parser lets pass and its engine refuses, told before a run is started or planned.

Source: DeepSpeed 0.19.8; each rule names its file and function. What the parser itself refuses is not here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from dsplan.dsconfig.buckets import ALLGATHER_ALIGNMENT
from dsplan.dsconfig.not_modelled import lookup, same_dtype
from dsplan.errors import InputError

_ZERO = "zero_optimization."
_SCATTERS = f"{_ZERO}reduce_scatter"


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A setting at which the engine stops; ``instead``: what it would take."""

    key: str
    message: str
    instead: str

    def __str__(self) -> str:
        return f"{self.key}: {self.message}; use {self.instead}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """What the engine is built from.

    Attributes:
        document: with DeepSpeed's current names of keys.
        precision: ``fp32``, ``fp16`` or ``bf16``.
        world_size: data-parallel ranks.
        checkpointing: how the model checkpoints, as a workload says it.
    """

    document: Mapping[str, Any]
    precision: str
    world_size: int
    checkpointing: str

    def get(self, key: str, default: Any = None) -> Any:
        """The value at the dotted ``key``; ``default`` where it is absent or null."""
        value, _ = lookup(self.document, key)
        return default if value is None else value

    @property
    def stage(self) -> int:
        """The ZeRO stage."""
        return int(self.get(f"{_ZERO}stage", 0))

    @property
    def optimizer(self) -> str:
        """The optimizer's name in small letters; empty when the script makes it."""
        return str(self.get("optimizer.type", "")).casefold()

    @property
    def offloads(self) -> bool:
        """Whether the optimizer runs on the CPU."""
        return bool(self.get(f"{_ZERO}offload_optimizer.device", "none") != "none")


def require_engine(engine: Engine) -> None:
    """Raise what DeepSpeed's engine would, in one line.

    Raises:
        InputError: some combination stops it; all of them are named.
    """
    found = [str(refusal) for rule in RULES for refusal in rule(engine)]
    if found:
        raise InputError(f"DeepSpeed's engine refuses it: {'. '.join(found)}")


def secondary_partition(engine: Engine) -> Iterator[Refusal]:
    """``utils/groups.py``, ``_create_zero_param_parallel_group``: more than the ranks counts as all of them."""
    key, world_size = f"{_ZERO}zero_hpz_partition_size", engine.world_size
    size = min(int(engine.get(key, 1)), world_size)
    if engine.stage == 3 and size > 1 and world_size % size:
        divisors = [str(number) for number in range(1, world_size + 1) if world_size % number == 0]
        yield Refusal(
            key=key, message=f"{size} does not divide the {world_size} ranks", instead=f"one of {', '.join(divisors)}"
        )


def allgather_alignment(engine: Engine) -> Iterator[Refusal]:
    """``runtime/zero/stage_1_and_2.py``, ``__init__``; not ``runtime/bf16_optimizer.py``, which stage 1 may be."""
    accumulates = str(engine.get("data_types.grad_accum_dtype", engine.precision)).lower()
    other = engine.stage == 1 and engine.precision == "bf16" and same_dtype(accumulates, "fp32")
    size = int(engine.get(f"{_ZERO}allgather_bucket_size", 0))
    if engine.stage in (1, 2) and not other and size % ALLGATHER_ALIGNMENT:
        yield Refusal(
            key=f"{_ZERO}allgather_bucket_size",
            message=f"{size} is odd, which stages 1 and 2 do not take",
            instead=str(size - size % ALLGATHER_ALIGNMENT or ALLGATHER_ALIGNMENT),
        )


def scattered_gradients(engine: Engine) -> Iterator[Refusal]:
    """``runtime/zero/stage_1_and_2.py`` (``__init__``; stage 2 that averages) and ``runtime/zero/stage3.py``."""
    averages = engine.stage == 3 or engine.get("gradient_allreduce_op", "mean") != "sum"
    if engine.stage not in (2, 3) or not averages or engine.get(_SCATTERS, True) is False:
        return
    reason = f"stage {engine.stage} with reduce_scatter, which is true unless it is given, does not take it"
    instead = f"{{}}, or {_SCATTERS} false"
    factor = engine.get("gradient_predivide_factor", 1.0)
    if factor != 1:
        yield Refusal(
            key="gradient_predivide_factor", message=f"{factor} is not allowed; {reason}", instead=instead.format("1.0")
        )
    if engine.get("prescale_gradients", False) is True:
        yield Refusal(key="prescale_gradients", message=reason, instead=instead.format("false"))


def muon(engine: Engine) -> Iterator[Refusal]:
    """``runtime/zero/stage3.py``, ``__init__``."""
    if engine.optimizer == "muon" and engine.stage == 3 and engine.get(_SCATTERS, True) is not False:
        yield Refusal(
            key=_SCATTERS, message="Muon at stage 3 does not go with it, and it is true unless given", instead="false"
        )


def master_weights(engine: Engine) -> Iterator[Refusal]:
    """``runtime/config.py`` (``_do_error_check``), ``runtime/base_optimizer.py`` (``_configure_master_weights``)."""
    master, states = "bf16.bf16_master_weights_and_grads", "bf16.bf16_optimizer_states"
    has_master, has_states = engine.get(master, False) is True, engine.get(states, False) is True
    for key, given in ((master, has_master), (states, has_states)):
        if given and engine.stage == 0:
            yield Refusal(key=key, message="needs ZeRO, and the stage is 0", instead="stage 1, 2 or 3, or false")
    if has_states and not has_master:
        yield Refusal(key=states, message=f"needs {master}", instead="true for both, or false")
    if has_master and engine.stage and not has_states and not (engine.offloads and engine.optimizer in _ADAM):
        yield Refusal(
            key=master,
            message="without bf16_optimizer_states it needs offload_optimizer and DeepSpeed's CPU Adam",
            instead="these, or bf16_optimizer_states true as well, or false",
        )


_ADAM = ("adam", "adamw")


def accumulation(engine: Engine) -> Iterator[Refusal]:
    """``runtime/engine.py``, ``_do_optimizer_sanity_check``: without ZeRO there is one dtype for both."""
    key = "data_types.grad_accum_dtype"
    dtype = engine.get(key)
    if engine.stage == 0 and dtype is not None and not same_dtype(str(dtype).lower(), engine.precision):
        yield Refusal(
            key=key,
            message=f"stage 0 does not accumulate in {dtype} what it computes in {engine.precision}",
            instead=f'"{engine.precision}", or ZeRO',
        )


def amsgrad(engine: Engine) -> Iterator[Refusal]:
    """``ops/adam/fused_adam.py``, ``FusedAdam.__init__``; torch's and the CPU's Adam take it."""
    given = engine.get("optimizer.params.amsgrad", False) is True
    own = engine.get("optimizer.params.torch_adam", False) is not True and not engine.offloads
    if given and own and engine.optimizer in _ADAM:
        yield Refusal(key="optimizer.params.amsgrad", message="FusedAdam does not have it", instead="torch_adam true")


def contiguous_checkpoints(engine: Engine) -> Iterator[Refusal]:
    """``runtime/activation_checkpointing/checkpointing.py``, ``configure``."""
    section = "activation_checkpointing."
    key = f"{section}contiguous_memory_optimization"
    if engine.checkpointing != "deepspeed" or engine.get(key, False) is not True:
        return
    if engine.get(f"{section}partition_activations", False) is not True:
        yield Refusal(key=key, message="needs partition_activations", instead="true for both")
    if engine.get(f"{section}number_checkpoints") is None:
        yield Refusal(key=key, message="needs number_checkpoints", instead="the number of checkpointed layers")


def gradient_norm(engine: Engine) -> Iterator[Refusal]:
    """``runtime/zero/stage_1_and_2.py`` (``__init__``), ``runtime/engine.py`` (``_do_optimizer_sanity_check``)."""
    key = f"{_ZERO}compute_grad_norm"
    if engine.stage not in (1, 2) or engine.get(key, True) is not False:
        return
    if engine.get("gradient_clipping", 1.0) > 0:
        message = "clipping needs the gradient's norm, and gradient_clipping is 1.0 unless it is given"
        yield Refusal(key=key, message=message, instead='"gradient_clipping": 0')
    accumulates = str(engine.get("data_types.grad_accum_dtype", engine.precision)).lower()
    if engine.offloads:
        yield Refusal(key=key, message="offload_optimizer needs the gradient's norm", instead="true")
    elif engine.stage == 1 and engine.precision == "bf16" and same_dtype(accumulates, "fp32"):
        yield Refusal(key=key, message="stage 1 in bf16 with fp32 accumulation needs the norm", instead="true")


RULES: tuple[Callable[[Engine], Iterator[Refusal]], ...] = (
    secondary_partition,
    allgather_alignment,
    scattered_gradients,
    muon,
    master_weights,
    accumulation,
    amsgrad,
    contiguous_checkpoints,
    gradient_norm,
)
