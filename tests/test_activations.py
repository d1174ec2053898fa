"""Activations: what the program keeps, against closed formulas; what a backward pass leaves behind.

Legend: e bytes of an element, A = b·s·h, Q = b·a·s². A piece's own output counts as live between its
forward and its backward, its input does not: the piece before it has it.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsplan.activations import STREAM, Program, programs
from dsplan.errors import InputError
from dsplan.kernels import EFFICIENT, FLASH, Kernels
from dsplan.model import ModelShape
from dsplan.tape import ALLOC, FREE, GRADIENT
from dsplan.units import round_up
from dsplan.workload import Workload

from .tapes import CPU, EXACT, levels, net, shape, small_shapes

quick = settings(max_examples=60, deadline=None)

workloads = st.builds(
    Workload,
    micro_batch_size=st.integers(1, 5),
    sequence_length=st.integers(1, 16),
    precision=st.sampled_from(["fp32", "bf16"]),
)
checkpointing = st.sampled_from(["none", "torch", "deepspeed"])


def kept(model: ModelShape, workload: Workload, kernels: Kernels = EXACT) -> int:
    return net(programs(model, workload, kernels).block.forward)


def sizes(model: ModelShape, workload: Workload) -> tuple[int, int, int, int, int]:
    """e, b, s, A, Q."""
    e, b, s = workload.element_bytes, workload.micro_batch_size, workload.sequence_length
    return e, b, s, b * s * model.hidden_size, b * model.num_attention_heads * s * s


@quick
@given(small_shapes(attention="eager"), workloads)
def test_an_eager_block_keeps_the_closed_formula(model: ModelShape, workload: Workload) -> None:
    e, b, s, stream, scores = sizes(model, workload)
    expected = (28 if model.activation == "gelu_new" else 16) * e * stream + e * scores + s * s + 16 * b * s
    if model.dropout:
        expected += 2 * stream + (e + 1) * scores
    assert kept(model, workload) == expected


@quick
@given(small_shapes(attention="sdpa"), workloads, st.sampled_from([FLASH, EFFICIENT]))
def test_a_fused_block_keeps_the_log_sum_exp_in_place_of_the_scores(
    model: ModelShape, workload: Workload, kernel: str
) -> None:
    e, b, s, stream, _ = sizes(model, workload)
    # Flash takes half precision only, and the memory-efficient kernel pads its rows to 32.
    rows = s if kernel == FLASH and e == 2 else round_up(s, 32)
    expected = (28 if model.activation == "gelu_new" else 16) * e * stream + 16 * b * s
    expected += 4 * b * model.num_attention_heads * rows + 2 * 8
    if model.dropout:
        expected += 2 * stream
    if kernel == FLASH and e == 2 and model.head_width % 8:
        # Padded queries, keys and values in place of the plain ones, and the padded output beside the one that is cut.
        padded = e * b * s * model.num_attention_heads * round_up(model.head_width, 8)
        expected += 3 * (padded - e * stream) + padded
    assert kept(model, workload, replace(EXACT, fused_attention=kernel)) == expected


@quick
@given(small_shapes(attention="eager"), workloads)
def test_on_the_cpu_dropout_keeps_its_noise_and_layer_norm_its_type(model: ModelShape, workload: Workload) -> None:
    e, b, s, stream, scores = sizes(model, workload)
    expected = (28 if model.activation == "gelu_new" else 16) * e * stream + e * scores + s * s + 4 * e * b * s
    if model.dropout:
        expected += 2 * e * stream + 2 * e * scores
    assert kept(model, workload, CPU) == expected


@quick
@given(small_shapes(), workloads, st.sampled_from(["torch", "deepspeed"]))
def test_a_checkpointed_block_keeps_its_output_alone(model: ModelShape, workload: Workload, kind: str) -> None:
    e, _, _, stream, _ = sizes(model, workload)
    assert kept(model, replace(workload, activation_checkpointing=kind)) == e * stream


@quick
@given(small_shapes(), workloads)
def test_the_ends_keep_the_stream_and_the_logits(model: ModelShape, workload: Workload) -> None:
    e, b, s, stream, _ = sizes(model, workload)
    pieces = programs(model, workload, EXACT)
    # The position indices, the stream that the first block reads, and its dropout's mask.
    assert net(pieces.embedding.forward) == 8 * s + e * stream + (stream if model.dropout else 0)
    # ln_f's output and statistics, the logits' log-softmax, the loss and the sum of the weights.
    assert net(pieces.head.forward) == e * stream + 8 * b * s + e * b * s * model.vocab_size + 2 * e


def in_order(program: Program) -> list[str]:
    return [str(what) for kind, _, what in program.backward if kind == GRADIENT]


@quick
@given(small_shapes(), workloads, checkpointing, st.booleans())
def test_backward_leaves_the_parameter_gradients_and_nothing_else(
    model: ModelShape, workload: Workload, kind: str, in_place: bool
) -> None:
    workload = replace(workload, activation_checkpointing=kind)
    pieces = programs(model, workload, replace(EXACT, accumulates_in_place=in_place))
    e = workload.element_bytes
    left = [net((*piece.forward, *piece.backward)) for piece in (pieces.embedding, pieces.block, pieces.head)]
    stream = e * sizes(model, workload)[3]  # each piece frees that of the one before it
    left = [left[0] - stream, left[1], left[2] + stream]
    assert left[1] == e * model.num_parameters_per_block
    if model.tie_word_embeddings:
        # The head's gradient of the shared weight waits, and the embedding's is added to it.
        table = model.embedding_parameters[0].numel
        assert left[2] == e * (sum(p.numel for p in model.head_parameters) + table)
        assert left[0] == e * (sum(p.numel for p in model.embedding_parameters) - table)
    else:
        assert left[2] == e * sum(p.numel for p in model.head_parameters)
        assert left[0] == e * sum(p.numel for p in model.embedding_parameters)
    assert left[0] + model.num_layers * left[1] + left[2] == e * model.num_parameters


@quick
@given(small_shapes(), workloads, checkpointing)
def test_every_parameter_hands_over_its_gradient_once(model: ModelShape, workload: Workload, kind: str) -> None:
    pieces = programs(model, replace(workload, activation_checkpointing=kind), EXACT)
    assert sorted(in_order(pieces.block)) == sorted(p.name for p in model.block_parameters)
    ends = [*in_order(pieces.head), *in_order(pieces.embedding)]
    assert sorted(ends) == sorted(p.name for p in (*model.head_parameters, *model.embedding_parameters))


@quick
@given(small_shapes(), workloads, checkpointing, st.sampled_from([EXACT, Kernels()]))
def test_no_event_frees_what_is_not_there(model: ModelShape, workload: Workload, kind: str, kernels: Kernels) -> None:
    pieces = programs(model, replace(workload, activation_checkpointing=kind), kernels)
    for piece in (pieces.embedding, pieces.block, pieces.head):
        given = 0 if piece is pieces.embedding else kernels.rounded(workload.element_bytes * sizes(model, workload)[3])
        level = given
        live: dict[object, int] = {STREAM: given}  # a piece frees its input
        for event, size, what in (*piece.forward, *piece.backward):
            assert size % kernels.block_bytes == 0
            change = {ALLOC: size, FREE: -size}.get(event, 0)
            level += change
            live[what] = live.get(what, 0) + change
            assert level >= 0
            assert live[what] >= 0


def test_recomputing_needs_less_than_keeping_and_more_than_a_forward() -> None:
    model = shape(num_layers=1)
    peaks = {}
    for kind in ("none", "torch", "deepspeed"):
        block = programs(model, Workload(sequence_length=16, activation_checkpointing=kind), EXACT).block
        level, forward = levels(block.forward)
        _, backward = levels(block.backward, level)
        peaks[kind] = (forward, backward)
    assert peaks["torch"][0] == peaks["deepspeed"][0] < peaks["none"][0]
    assert peaks["torch"][1] <= peaks["deepspeed"][1]
    # One block's recomputation holds what it would have kept, beside its gradient.
    assert peaks["torch"][1] >= peaks["none"][0] - shape().hidden_size * 16 * 2


def test_fused_attention_with_dropout_is_not_planned_on_the_cpu() -> None:
    with pytest.raises(InputError, match="no fused kernel on the CPU"):
        programs(shape(attention="sdpa", dropout=0.1), Workload(sequence_length=8), CPU)
