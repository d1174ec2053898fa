"""What goes when where blocks run again: what a second run has saved goes early, and what a first one has not."""

from __future__ import annotations

import pytest

from dsplan.activations import programs
from dsplan.decoders.experts import ROWS
from dsplan.decoders.norms import SCALED, UPCAST
from dsplan.decoders.pieces import STREAM
from dsplan.operators import BACKWARD
from dsplan.tape import ALLOC, FREE
from tests.families.test_decoders import shape, workload
from tests.tapes import EXACT


@pytest.mark.parametrize(("checkpointing", "goes_first"), [("none", False), ("torch", True), ("deepspeed", False)])
def test_rows_of_experts_go_before_the_cast_where_they_were_recomputed(checkpointing: str, goes_first: bool) -> None:
    model = shape("deepseek_v3")
    work = workload(precision="bf16", activation_checkpointing=checkpointing)
    events = programs(model, work, EXACT).block.backward
    rows = work.element_bytes * work.micro_batch_size * work.sequence_length * 2 * model.hidden_size  # e·T·k·h
    wide = 2 * rows  # in fp32, as are DeepSeek's weights of experts
    # The product's gradients in fp32, each as large as the rows twice; then that of the rows, cast.
    products = [at for at, event in enumerate(events) if event == (ALLOC, wide, BACKWARD)]
    cast = next(at for at, event in enumerate(events) if event == (ALLOC, rows, BACKWARD) and at > products[3])
    gone = next(at for at, event in enumerate(events) if event == (FREE, rows, ROWS) and at > products[3])
    assert (gone < cast) == goes_first


@pytest.mark.parametrize(("checkpointing", "goes_first"), [("torch", True), ("deepspeed", False)])
def test_a_blocks_input_goes_with_the_last_that_its_second_run_has_saved(checkpointing: str, goes_first: bool) -> None:
    """The last is the first norm's input in fp32; its gradient is cast to the model's type after that."""
    model = shape("llama")
    work = workload(precision="bf16", activation_checkpointing=checkpointing)
    events = programs(model, work, EXACT).block.backward
    stream = work.element_bytes * work.micro_batch_size * work.sequence_length * model.hidden_size
    cast = max(at for at, event in enumerate(events) if event == (ALLOC, stream, BACKWARD))
    gone = max(at for at, (kind, size, term) in enumerate(events) if (kind, size, term) == (FREE, stream, STREAM))
    assert (gone < cast) == goes_first


def test_a_norms_fp32_copy_goes_before_its_product_is_cast_where_nothing_is_saved() -> None:
    """``hidden_states`` is the product's name by then (modeling_llama.py LlamaRMSNorm.forward)."""
    work = workload(precision="bf16", activation_checkpointing="torch")
    events = programs(shape("llama"), work, EXACT).block.forward
    gone = next(at for at, (kind, _, term) in enumerate(events) if kind == FREE and term is UPCAST)
    cast = next(at for at, (kind, _, term) in enumerate(events) if kind == ALLOC and term is SCALED)
    assert gone < cast
