"""Levels: what is allocated between two steps, for models of which only the tensors are known.

These are the terms that ``dsplan.engine`` leaves behind after a step (DeepSpeed 0.19.8, Adam): no activations and no
gradients live then, so the sizes of the parameters say it all.

Legend: Ψ parameters, Ψp padded to a multiple of 2N, N ranks, n elements of one parameter, e bytes of a model element,
R ``reduce_bucket_size``.
"""

from __future__ import annotations

from dsplan import buffers, states
from dsplan.ledger import Term
from dsplan.partition import ALIGNMENT_FACTOR
from dsplan.replay.tensors import Tensors
from dsplan.units import ceil_div, round_up
from dsplan.workload import PRECISION_BYTES
from dsplan.zero import ZeroConfig

MOMENTS = 2

BUFFERS = Term("buffers", "4 bytes an element", "nn.Module.register_buffer; engine.py keeps buffers fp32")


def steady_level(tensors: Tensors, zero: ZeroConfig, world_size: int, precision: str) -> tuple[tuple[Term, int], ...]:
    """The terms on the device between steps, in bytes; stages 0 to 3, with or without offload.

    Raises:
        ValueError: 16-bit precision at stage 0, whose states depend on the optimizer.
    """
    e = PRECISION_BYTES[precision]
    sizes = tensors.parameters
    held: list[tuple[Term, int]] = [(BUFFERS, tensors.buffer_bytes)]
    if zero.stage == 0:
        if e != 4:
            raise ValueError("stage 0 in 16-bit precision is not worked out here")
        held += [(states.PARAMETERS, 4 * sum(sizes)), (states.OPTIMIZER_STATES, MOMENTS * 4 * sum(sizes))]
        return tuple(held)
    if zero.stage in (1, 2):
        padded = round_up(sum(sizes), ALIGNMENT_FACTOR * world_size)
        held.append((states.PARAMETERS, e * padded))
        return (*held, *_states(padded // world_size, zero))
    parts = sum(ceil_div(numel, world_size) for numel in sizes)
    if not zero.offloads_parameters:
        held.append((states.PARTITIONED_PARAMETERS, e * parts))
    if not zero.offloads_optimizer:
        held.append((states.GRADIENT_PARTITION, e * parts))
    held.append((buffers.REDUCE_BUCKET, e * zero.reduce_bucket_size))
    threshold = zero.stage3_param_persistence_threshold
    held.append((buffers.PERSISTENT, e * sum(round_up(n, world_size) for n in sizes if n <= threshold)))
    return (*held, *_states(parts, zero))


def _states(elements: int, zero: ZeroConfig) -> tuple[tuple[Term, int], ...]:
    if zero.offloads_optimizer:
        return ()
    return ((states.MASTER, 4 * elements), (states.OPTIMIZER_STATES, MOMENTS * 4 * elements))
