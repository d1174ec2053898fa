"""The embedding of a frozen model whose blocks run again: autograd's graph holds it (dsplan/decoders/pieces.py)."""

from __future__ import annotations

import pytest

from dsplan.activations import programs
from dsplan.tape import ALLOC, FREE
from tests.families.test_decoders import shape, workload
from tests.tapes import EXACT

LORA = {"dsplan": {"lora_rank": 4}}


def held_over_the_blocks(name: str, checkpointing: str) -> int:
    """Streams that embedding and head leave to the blocks beside the one that they hand on."""
    model, work = shape(name, **LORA), workload(activation_checkpointing=checkpointing)
    pieces = programs(model, work, EXACT)
    stream = work.element_bytes * work.micro_batch_size * work.sequence_length * model.hidden_size
    changes = [event for event in (*pieces.embedding.forward, *pieces.head.forward) if event[1] == stream]
    return sum(1 if kind == ALLOC else -1 if kind == FREE else 0 for kind, _, _ in changes)


@pytest.mark.parametrize("name", ["gpt2", "opt", "gemma"])
def test_what_the_first_block_does_not_get_is_held_until_backward_is_over(name: str) -> None:
    assert held_over_the_blocks(name, "torch") == held_over_the_blocks(name, "none") + 1


@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt_neox", "falcon"])
def test_what_it_gets_is_held_once(name: str) -> None:
    assert held_over_the_blocks(name, "torch") == held_over_the_blocks(name, "none")
