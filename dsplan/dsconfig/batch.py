"""The three batch sizes: DeepSpeed's rule, which fills in those that are missing.

train_batch_size = train_micro_batch_size_per_gpu x gradient_accumulation_steps x world size

Source: DeepSpeed ``runtime/config.py`` (``_set_batch_related_parameters``, ``_batch_assertion``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dsplan.errors import InputError, require_positive

TRAIN_BATCH = "train_batch_size"
MICRO_BATCH = "train_micro_batch_size_per_gpu"
ACCUMULATION = "gradient_accumulation_steps"


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchSizes:
    """The resolved batch sizes, in samples (``gradient_accumulation_steps`` in micro batches)."""

    train_batch_size: int
    micro_batch_size: int
    gradient_accumulation_steps: int


def resolve_batch_sizes(document: Mapping[str, Any], world_size: int) -> BatchSizes:
    """The three numbers as DeepSpeed resolves them on ``world_size`` data-parallel ranks.

    Raises:
        InputError: neither train_batch_size nor the micro batch size is given, a number is not a
            positive integer, or the three contradict each other.
    """
    given = {key: document[key] for key in (TRAIN_BATCH, MICRO_BATCH, ACCUMULATION) if document.get(key) is not None}
    for key, value in given.items():
        require_positive(key, value)
    train, micro, steps = given.get(TRAIN_BATCH), given.get(MICRO_BATCH), given.get(ACCUMULATION)
    if train is None:
        if micro is None:
            raise InputError(
                f"{TRAIN_BATCH}, {MICRO_BATCH}: DeepSpeed needs at least one of them; "
                f'add e.g. "{MICRO_BATCH}": 1, "{ACCUMULATION}": 1'
            )
        steps = steps or 1
        train = micro * steps * world_size
    elif micro is None:
        steps = steps or 1
        micro = train // world_size // steps
    elif steps is None:
        steps = train // micro // world_size
    if train != micro * steps * world_size:
        raise InputError(_contradiction(given, world_size))
    return BatchSizes(train_batch_size=train, micro_batch_size=micro, gradient_accumulation_steps=steps)


def _contradiction(given: Mapping[str, int], world_size: int) -> str:
    named = ", ".join(f"{key} {given.get(key, 'not given')}" for key in (TRAIN_BATCH, MICRO_BATCH, ACCUMULATION))
    unit = given.get(MICRO_BATCH, 1) * given.get(ACCUMULATION, 1) * world_size
    if len(given) == 3:
        fix = f"set {TRAIN_BATCH} to {unit}, or leave it out"
    else:
        below = given[TRAIN_BATCH] // unit * unit
        near = f"{below} or {below + unit}" if below else str(unit)
        fix = f"{TRAIN_BATCH} must be a multiple of {unit}: e.g. {near}"
    return (
        f"batch sizes contradict each other: {named}, world size {world_size}, but {TRAIN_BATCH} must be "
        f"micro batch x accumulation steps x world size; {fix}"
    )
