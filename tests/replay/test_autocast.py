"""Programs under autocast: what a block keeps, counted by hand, and levels against the real engine's dry run.

Legend: A = b·s·h elements of an activation, Q = b·a·s² scores, e = 2 bytes of autocast's type.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest

from dsplan.catalogue import accelerator
from dsplan.engine.autocast import autocast_programs
from dsplan.kernels import Kernels, kernels_of
from dsplan.model import ModelShape
from dsplan.workload import Workload
from runner.spec import RunSpec
from tests.dry_runs import dry_runs
from tests.tapes import EXACT, levels, net, shape

B, T, H, HEADS = 2, 32, 16, 2
A, Q = B * T * H, B * HEADS * T * T


def workload(**changes: Any) -> Workload:
    return Workload(**{"micro_batch_size": B, "sequence_length": T, "precision": "fp16", **changes})


@pytest.mark.parametrize(
    ("activation", "attention", "kept"),
    [
        # Stream 8A, casts of both norms 4A, q k v 6A, context 2A, masks 2A; GELU: c_fc's output and its own, 16A.
        ("gelu", "eager", 38 * A + 7 * Q + T * T),
        # pow's cast, tanh and 1 + tanh in fp32, 48A; 0.5·x and the cast of the result in half, 16A.
        ("gelu_new", "eager", 86 * A + 7 * Q + T * T),
        # No scores: a log-sum-exp in fp32 and two words of random state.
        ("gelu", "sdpa", 38 * A + 4 * B * HEADS * T + 16),
    ],
)
def test_what_a_block_keeps(activation: str, attention: str, kept: int) -> None:
    model = shape(activation=activation, attention=attention)
    block = autocast_programs(model, workload(), EXACT).block
    statistics = 4 * 4 * B * T
    weights_and_biases = 2 * (12 * H * H + 9 * H)
    assert net(block.forward) == kept + statistics + weights_and_biases


@pytest.mark.parametrize("checkpointing", ["none", "torch"])
def test_every_cast_is_gone_after_the_backward_and_gradients_are_fp32(checkpointing: str) -> None:
    model = shape(attention="eager")
    programs = autocast_programs(model, workload(activation_checkpointing=checkpointing), EXACT)
    pieces = (programs.embedding, *[programs.block] * model.num_layers, programs.head)
    assert sum(net(piece.forward) + net(piece.backward) for piece in pieces) == 4 * model.num_parameters


def test_leaving_autocast_frees_what_only_its_cache_holds() -> None:
    model = shape()
    plain, checkpointed = (
        autocast_programs(model, workload(activation_checkpointing=kind), EXACT) for kind in ("none", "torch")
    )
    # A checkpointed block leaves its fp32 output, and in the cache every copy of its weights and biases.
    assert net(checkpointed.block.forward) == 4 * A + 2 * (12 * H * H + 9 * H)
    # The biases' copies go with either; the matrices', which autograd does not hold, with checkpointing only.
    freed = net(plain.head.forward) - net(checkpointed.head.forward)
    assert freed == model.num_layers * 2 * 12 * H * H


LAYERS, WIDTH, VOCABULARY, LENGTH = 2, 64, 512, 32
RUNS = {"recomputed": ("gelu", "eager", "torch"), "kept": ("gelu_new", "sdpa", "none")}


@pytest.mark.engine
def test_levels_are_those_of_the_real_engine_to_the_byte() -> None:
    """DeepSpeed's stage 0 under torch_autocast runs the same program (about 8 s for two dry runs)."""
    kernels = kernels_of(accelerator("h200"))
    for name, run in dry_runs({name: spec(*of) for name, of in RUNS.items()}):
        assert isinstance(run, dict), run
        phases = run["steps"][-1]["phases"]
        base = phases["forward"]["level_before_bytes"]
        after, peak = forward(*RUNS[name], kernels)
        assert after == phases["forward"]["level_bytes"] - base, name
        assert peak == phases["forward"]["peak_bytes"] - base, name


def spec(activation: str, attention: str, kind: str) -> RunSpec:
    return RunSpec(
        model=model_of(activation, attention).to_config(),
        ds_config={
            "train_micro_batch_size_per_gpu": B,
            "gradient_accumulation_steps": 1,
            "train_batch_size": 2 * B,
            "optimizer": {"type": "AdamW", "params": {"lr": 1e-4}},
            "torch_autocast": {"enabled": True, "dtype": "float16"},
            "zero_optimization": {"stage": 0},
        },
        sequence_length=LENGTH,
        activation_checkpointing=kind,
        device="fake",
        gpus=2,
        rank=0,
        steps=2,
        target=asdict(accelerator("h200")),
    )


def model_of(activation: str, attention: str) -> ModelShape:
    return shape(
        hidden_size=WIDTH,
        num_attention_heads=4,
        vocab_size=VOCABULARY,
        max_position_embeddings=LENGTH,
        num_layers=LAYERS,
        activation=activation,
        attention=attention,
    )


def forward(activation: str, attention: str, kind: str, kernels: Kernels) -> tuple[int, int]:
    """Level and peak of the forward pass over what was there before, tokens and targets included."""
    model = model_of(activation, attention)
    programs = autocast_programs(model, workload(sequence_length=LENGTH, activation_checkpointing=kind), kernels)
    level = 2 * 512 * -(-8 * B * LENGTH // 512)
    peak = level
    for piece in (programs.embedding, *[programs.block] * model.num_layers, programs.head):
        level, highest = levels(piece.forward, level)
        peak = max(peak, highest)
    return level, peak
