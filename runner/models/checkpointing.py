"""The function that runs a block and recomputes it in the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def checkpoint_function(kind: str) -> Callable[..., Any] | None:
    """``checkpoint(block, x)`` of an ``activation_checkpointing``; None keeps activations.

    Raises:
        ValueError: ``kind`` is unknown.
    """
    if kind in ("torch", "torch-reentrant"):
        from torch.utils.checkpoint import checkpoint

        return lambda block, x: checkpoint(block, x, use_reentrant=kind == "torch-reentrant")
    if kind == "deepspeed":
        import deepspeed

        return deepspeed.checkpointing.checkpoint  # type: ignore[no-any-return]
    if kind != "none":
        raise ValueError(f"activation_checkpointing: unknown value {kind!r}")
    return None
