"""Levels of a tape's events, and small shapes to record them for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from hypothesis import strategies as st

from dsplan.hardware import Accelerator
from dsplan.kernels import Kernels, kernels_of
from dsplan.model import ModelShape
from dsplan.tape import ALLOC, FREE, Event

#: CUDA's kernels without the rounding, so that formulas are exact.
EXACT = Kernels(block_bytes=1)
CPU = kernels_of(Accelerator(name="cpu", label="CPU", kind="cpu", memory_bytes=None))


def levels(events: Iterable[Event], start: int = 0) -> tuple[int, int]:
    """(level after, peak during) in bytes of a stretch of events."""
    level = peak = start
    for kind, size, _ in events:
        if kind == ALLOC:
            level += size
            peak = max(peak, level)
        elif kind == FREE:
            level -= size
    return level, peak


def net(events: Iterable[Event]) -> int:
    """What a stretch of events leaves behind, in bytes."""
    return levels(events)[0]


def shape(**changes: Any) -> ModelShape:
    """A model of a few thousand parameters."""
    return ModelShape(
        **{
            "num_layers": 2,
            "hidden_size": 16,
            "num_attention_heads": 2,
            "vocab_size": 50,
            "max_position_embeddings": 32,
            **changes,
        }
    )


def small_shapes(**fixed: Any) -> st.SearchStrategy[ModelShape]:
    """Models of odd widths and vocabularies, so that nothing divides by accident."""
    fields: dict[str, st.SearchStrategy[Any]] = {
        "num_layers": st.integers(1, 4),
        "vocab_size": st.integers(1, 300),
        "max_position_embeddings": st.integers(16, 40),
        "attention": st.sampled_from(["eager", "sdpa"]),
        "activation": st.sampled_from(["gelu", "gelu_new"]),
        "dropout": st.sampled_from([0.0, 0.1]),
        "tie_word_embeddings": st.booleans(),
    }
    fields |= {name: st.just(value) for name, value in fixed.items()}
    return st.builds(
        lambda heads, width, **rest: ModelShape(num_attention_heads=heads, hidden_size=heads * width, **rest),
        heads=st.integers(1, 4),
        width=st.integers(1, 24),
        **fields,
    )
