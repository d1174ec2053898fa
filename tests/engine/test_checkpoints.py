"""Where DeepSpeed's activation checkpointing keeps the inputs of blocks, option by option.

Legend: A bytes of a block's input, L blocks; a placeholder takes a block of the allocator's.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from dsplan.engine import Run
from dsplan.engine.checkpoints import PLACEHOLDER_BYTES, checkpoints_of
from dsplan.errors import InputError
from dsplan.kernels import Kernels
from dsplan.ledger import Ledger
from dsplan.model import ModelShape
from dsplan.plan import Plan
from dsplan.walk import WalkResult, walk
from dsplan.workload import CheckpointOptions, Workload
from dsplan.zero import ZeroConfig

L = 5
MODEL = ModelShape(
    num_layers=L, hidden_size=64, num_attention_heads=2, vocab_size=128, max_position_embeddings=64, dropout=0.1
)
WORKLOAD = Workload(sequence_length=64, micro_batch_size=8, activation_checkpointing="deepspeed")
PLAN = Plan(name="mine", zero=ZeroConfig(stage=2, reduce_bucket_size=50_000), workload=WORKLOAD)
KERNELS = Kernels()
A = 2 * 8 * 64 * 64
PLACEHOLDERS = L * KERNELS.rounded(PLACEHOLDER_BYTES)
ON_HOST = CheckpointOptions(cpu_checkpointing=True)
COPIED = CheckpointOptions(partition_activations=True)
COPIED_ON_HOST = CheckpointOptions(partition_activations=True, cpu_checkpointing=True)
IN_BUFFERS = CheckpointOptions(partition_activations=True, contiguous_memory_optimization=True)
OPTIONS = (
    ON_HOST,
    COPIED,
    COPIED_ON_HOST,
    IN_BUFFERS,
    replace(IN_BUFFERS, cpu_checkpointing=True),
    replace(IN_BUFFERS, number_checkpoints=L + 3),
)


def walked(options: CheckpointOptions, model: ModelShape = MODEL, **more: int) -> WalkResult:
    workload = replace(WORKLOAD, **more)
    return walk(model, replace(PLAN, checkpointing=options, workload=workload), 2, KERNELS, rank=1)


def after_forward(options: CheckpointOptions, model: ModelShape = MODEL) -> int:
    return walked(options, model).steps[-1].phases["forward"].level_bytes


PLAIN = CheckpointOptions()


def test_on_the_host_the_last_input_and_the_one_before_stay() -> None:
    assert after_forward(PLAIN) - after_forward(ON_HOST) == (L - 2) * A - PLACEHOLDERS
    host = walked(ON_HOST).pinned_bytes - walked(PLAIN).pinned_bytes
    assert host == (L - 1) * A  # a power of two as it is


@pytest.mark.parametrize("layers", [1, 2])
def test_of_one_or_two_blocks_all_inputs_stay(layers: int) -> None:
    model = replace(MODEL, num_layers=layers)
    placeholders = layers * KERNELS.rounded(PLACEHOLDER_BYTES)
    assert after_forward(ON_HOST, model) - after_forward(PLAIN, model) == placeholders


def test_a_copy_takes_the_input_s_place() -> None:
    assert after_forward(COPIED) - after_forward(PLAIN) == PLACEHOLDERS
    plain, copied = (walked(options).steps[-1].phases["forward"].peak_bytes for options in (PLAIN, COPIED))
    assert 0 <= copied - plain <= A + PLACEHOLDERS  # beside its input while the block runs


def test_a_copy_on_the_host_is_pageable() -> None:
    assert after_forward(PLAIN) - after_forward(COPIED_ON_HOST) == L * A - PLACEHOLDERS
    built = walked(PLAIN).pageable_bytes  # the model, before it is moved
    assert walked(COPIED_ON_HOST).pageable_bytes == max(built, L * A)


def test_buffers_are_as_many_as_were_asked_for_until_the_backward_pass() -> None:
    more = replace(IN_BUFFERS, number_checkpoints=L + 3)
    assert after_forward(IN_BUFFERS) - after_forward(PLAIN) == PLACEHOLDERS
    assert after_forward(more) - after_forward(IN_BUFFERS) == 3 * A
    last = [walked(options).steps[-1].phases["backward"].level_bytes for options in (IN_BUFFERS, more)]
    assert last[0] == last[1]


@pytest.mark.parametrize("options", OPTIONS)
def test_nothing_is_left_after_a_step(options: CheckpointOptions) -> None:
    for steps in (1, 2):
        left = [walked(each, gradient_accumulation_steps=steps).steps[-1].phases for each in (PLAIN, options)]
        assert left[0]["backward"].level_bytes == left[1]["backward"].level_bytes
        assert left[0]["step"] == left[1]["step"]


def test_what_is_not_modelled_is_refused() -> None:
    few = replace(IN_BUFFERS, number_checkpoints=L - 1)
    with pytest.raises(InputError, match=f"number_checkpoints: {L - 1} is not allowed; the model has {L} blocks"):
        walked(few)
    with pytest.raises(InputError, match="needs partition_activations"):
        CheckpointOptions(contiguous_memory_optimization=True)
    run = Run(
        model=MODEL,
        plan=replace(PLAN, checkpointing=ON_HOST),
        world_size=2,
        kernels=replace(KERNELS, one_pool=True),
        ledger=Ledger(KERNELS),
    )
    with pytest.raises(InputError, match="not modelled on the CPU"):
        checkpoints_of(run)


def test_options_that_nobody_reads_are_none() -> None:
    torch = replace(WORKLOAD, activation_checkpointing="torch")
    assert Plan(name="mine", workload=torch, checkpointing=ON_HOST).checkpointing == PLAIN
