"""The tape against reality: a real forward and backward on the CPU, counted storage by storage."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from dsplan.activations import programs
from dsplan.workload import Workload

from .tapes import CPU, levels, shape

torch = pytest.importorskip("torch")
pytest.importorskip("psutil")

from torch.utils.checkpoint import checkpoint  # noqa: E402

from mingpt import GPT, GPTConfig  # noqa: E402
from runner.device.cpu import StorageCounter  # noqa: E402

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
#: The scalars of the loss, which torch may keep or not.
SLACK = 16


@dataclass(frozen=True, kw_only=True)
class Case:
    """One model and workload; DeepSpeed's checkpointing is reentrant, as torch's may be."""

    attention: str = "eager"
    activation: str = "gelu_new"
    dropout: float = 0.1
    precision: str = "bf16"
    checkpointing: str = "none"
    tied: bool = False
    batch: int = 2

    def __str__(self) -> str:
        parts = (self.attention, self.activation, self.dropout, self.precision, self.checkpointing, self.batch)
        return "-".join([*map(str, parts), *(["tied"] if self.tied else [])])


CASES = [
    Case(),
    Case(dropout=0.0),
    Case(precision="fp32"),
    Case(activation="gelu"),
    Case(activation="gelu", dropout=0.0, precision="fp32"),
    Case(attention="sdpa", dropout=0.0),
    Case(attention="sdpa", dropout=0.0, precision="fp32", activation="gelu"),
    Case(checkpointing="torch"),
    Case(checkpointing="torch", dropout=0.0),
    Case(checkpointing="torch", attention="sdpa", dropout=0.0, precision="fp32"),
    Case(checkpointing="torch", activation="gelu", tied=True),
    Case(checkpointing="deepspeed"),
    Case(checkpointing="deepspeed", batch=1),
    Case(checkpointing="deepspeed", activation="gelu", dropout=0.0),
    Case(checkpointing="deepspeed", attention="sdpa", dropout=0.0),
    Case(tied=True),
    Case(tied=True, attention="sdpa", dropout=0.0, precision="fp32"),
    Case(tied=True, checkpointing="torch", batch=1),
    Case(tied=True, activation="gelu", dropout=0.0, checkpointing="deepspeed"),
    Case(batch=1),
    Case(batch=5),
    Case(batch=64),  # activations outweigh the parameters' gradients: the peak is in the GELU's backward
    Case(batch=64, activation="gelu", checkpointing="deepspeed"),
    Case(batch=64, attention="sdpa", dropout=0.0, activation="gelu"),
]

LAYERS, WIDTH, HEADS, VOCABULARY, POSITIONS, LENGTH = 3, 64, 2, 100, 32, 16


def planned(case: Case) -> tuple[int, int, int, int]:
    """Level and peak of the forward, level and peak of the backward pass."""
    model = shape(
        num_layers=LAYERS,
        hidden_size=WIDTH,
        num_attention_heads=HEADS,
        vocab_size=VOCABULARY,
        max_position_embeddings=POSITIONS,
        attention=case.attention,
        activation=case.activation,
        dropout=case.dropout,
        tie_word_embeddings=case.tied,
    )
    workload = Workload(
        micro_batch_size=case.batch,
        sequence_length=LENGTH,
        precision=case.precision,
        activation_checkpointing=case.checkpointing,
    )
    pieces = programs(model, workload, CPU)
    forward = (*pieces.embedding.forward, *pieces.block.forward * LAYERS, *pieces.head.forward)
    backward = (*pieces.head.backward, *pieces.block.backward * LAYERS, *pieces.embedding.backward)
    turn, high = levels(forward)
    return turn, high, *levels(backward, turn)


def counted(case: Case) -> tuple[int, int, int, int]:
    """The same of a real pass; parameters, buffers and the batch are there before."""
    config = GPTConfig(
        n_layer=LAYERS,
        n_head=HEADS,
        n_embd=WIDTH,
        vocab_size=VOCABULARY,
        block_size=POSITIONS,
        attention=case.attention,
        activation=case.activation,
        dropout=case.dropout,
        tie_word_embeddings=case.tied,
    )
    recompute: Callable[..., Any] | None = None
    if case.checkpointing != "none":
        reentrant = case.checkpointing == "deepspeed"
        recompute = lambda block, x: checkpoint(block, x, use_reentrant=reentrant)  # noqa: E731
    model = GPT(config, recompute).to(DTYPES[case.precision])
    tokens, targets = (torch.randint(VOCABULARY, (case.batch, LENGTH)) for _ in range(2))
    counter = StorageCounter()
    for tensor in (*model.parameters(), *model.buffers(), tokens, targets):
        counter._see(tensor.untyped_storage())
    base = counter.peak_bytes = counter.live_bytes
    with counter:
        loss = model(tokens, targets)
        turn, high = counter.live_bytes - base, counter.peak_bytes - base
        counter.peak_bytes = counter.live_bytes
        loss.backward()
        return turn, high, counter.live_bytes - base, counter.peak_bytes - base


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_tape_is_what_torch_does(case: Case) -> None:
    real, plan = counted(case), planned(case)
    above = [expected - found for found, expected in zip(real, plan, strict=True)]
    # torch's checkpoint lets go of a recomputed input between the weight's gradient and the bias's.
    bias_bytes = 4 * WIDTH * DTYPES[case.precision].itemsize if case.checkpointing == "torch" else 0
    allowed = (SLACK, SLACK, SLACK, SLACK + bias_bytes)
    assert all(-SLACK <= more <= most for more, most in zip(above, allowed, strict=True)), f"{real} counted, {plan}"
