"""Kinds of blocks: what differs between the layers of one decoder."""

from __future__ import annotations

from dataclasses import dataclass

from dsplan.families import Decoder
from dsplan.workload import Workload


@dataclass(frozen=True, slots=True)
class Kind:
    """What one block is like.

    Attributes:
        parameters: which of ``decoder.kinds`` it has.
        window: tokens that its attention sees, where the kernel needs a mask for it: they are fewer than the sample
            has. None: all, or attention that has its mask in any case.
        needs_gradient: whether its input needs a gradient: something before it is trained, or is said to be, as it is
            where checkpointed blocks have to run backward (``enable_input_require_grads``).
    """

    parameters: int = 0
    window: int | None = None
    needs_gradient: bool = True


def kinds_of(decoder: Decoder, workload: Workload, *, eager: bool) -> tuple[Kind, ...]:
    """The kind of each layer; ``eager``: attention is of elementary operators."""
    needs = decoder.trained or workload.activation_checkpointing != "none" or _trains(decoder.before)
    found = []
    for layer, parameters in enumerate(decoder.layers):
        window = decoder.windows[layer] if decoder.windows and not eager else None
        if window is not None and workload.sequence_length < window:
            window = None
        found.append(Kind(parameters, window, needs))
        needs = needs or _trains(decoder.kinds[parameters])
    return tuple(found)


def _trains(parameters: tuple[object, ...]) -> bool:
    return any(getattr(parameter, "trained", True) for parameter in parameters)
