"""mingpt: the model that is trained is the one that is planned, and it learns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from typing import Any

import pytest

from dsplan.model import ModelShape

torch = pytest.importorskip("torch")

from torch.utils.checkpoint import checkpoint  # noqa: E402

from mingpt import GPT, GPTConfig  # noqa: E402
from mingpt.data import synthetic, text  # noqa: E402

SMALL = GPTConfig(n_layer=2, n_head=2, n_embd=32, vocab_size=70, block_size=16, dropout=0.0)


def shape_of(config: GPTConfig) -> ModelShape:
    return ModelShape(
        num_layers=config.n_layer,
        hidden_size=config.n_embd,
        num_attention_heads=config.n_head,
        vocab_size=config.vocab_size,
        max_position_embeddings=config.block_size,
        attention=config.attention,
        activation=config.activation,
        dropout=config.dropout,
        tie_word_embeddings=config.tie_word_embeddings,
    )


def build(config: GPTConfig, function: Callable[..., Any] | None = None) -> GPT:
    torch.manual_seed(0)
    return GPT(config, function)


def batch(config: GPTConfig = SMALL, length: int = 16) -> tuple[Any, Any]:
    return next(synthetic(config.vocab_size, 3, length, seed=1))


def test_the_parameter_count_is_the_closed_form() -> None:
    layers, h, vocab, block = SMALL.n_layer, SMALL.n_embd, SMALL.vocab_size, SMALL.block_size
    count = sum(parameter.numel() for parameter in build(SMALL).parameters())
    assert count == layers * (12 * h * h + 13 * h) + 2 * vocab * h + block * h + 2 * h


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("activation", ["gelu", "gelu_new"])
def test_names_order_and_shapes_are_those_that_are_planned(tied: bool, attention: str, activation: str) -> None:
    config = replace(SMALL, tie_word_embeddings=tied, attention=attention, activation=activation)
    model, shape = build(config), shape_of(config)
    found = [(name, tuple(parameter.shape)) for name, parameter in model.named_parameters()]
    assert found == [(parameter.name, parameter.shape) for parameter in shape.parameters]
    assert sum(parameter.numel() for parameter in model.parameters()) == shape.num_parameters
    assert sum(buffer.numel() for buffer in model.buffers()) == shape.num_buffer_elements
    assert (model.lm_head.weight is model.transformer["wte"].weight) == tied


def test_only_eager_attention_registers_a_mask() -> None:
    names = [name for name, _ in build(SMALL).named_buffers()]
    assert names == [f"transformer.h.{layer}.attn.bias" for layer in range(2)]
    assert list(build(replace(SMALL, attention="sdpa")).buffers()) == []


def test_a_model_file_makes_the_same_model() -> None:
    assert GPTConfig.from_dict(shape_of(SMALL).to_config()) == SMALL


def test_a_fresh_model_knows_nothing() -> None:
    loss = build(SMALL)(*batch())
    assert loss.item() == pytest.approx(torch.tensor(70.0).log().item(), abs=0.1)


def test_without_targets_there_are_logits() -> None:
    assert tuple(build(SMALL)(batch()[0]).shape) == (3, 16, 70)


def test_the_past_does_not_see_the_future() -> None:
    tokens = batch()[0]
    changed = tokens.clone()
    changed[:, 10:] = (changed[:, 10:] + 1) % 70
    for attention in ("eager", "sdpa"):
        model = build(replace(SMALL, attention=attention))
        before, after = model(tokens), model(changed)
        torch.testing.assert_close(before[:, :10], after[:, :10])
        assert not torch.allclose(before[:, 10:], after[:, 10:])


def loss_and_gradients(model: GPT) -> tuple[Any, list[Any]]:
    loss = model(*batch())
    loss.backward()
    return loss, [parameter.grad for parameter in model.parameters()]


def test_eager_and_fused_attention_agree() -> None:
    eager = loss_and_gradients(build(SMALL))
    fused = loss_and_gradients(build(replace(SMALL, attention="sdpa")))
    torch.testing.assert_close(eager, fused, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_checkpointing_changes_neither_loss_nor_gradients(reentrant: bool, dropout: float) -> None:
    config = replace(SMALL, dropout=dropout)
    runs = []
    for function in (None, lambda block, x: checkpoint(block, x, use_reentrant=reentrant)):
        model = build(config, function)
        torch.manual_seed(1)  # the recomputation draws the same masks
        runs.append(loss_and_gradients(model))
    torch.testing.assert_close(*runs)


def test_it_learns_the_text() -> None:
    model = build(SMALL)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for tokens, targets in islice(text(SMALL.vocab_size, 16, 16, seed=0), 300):
        loss = model(tokens, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    start, end = sum(losses[:10]) / 10, sum(losses[-10:]) / 10
    assert start > 3.0
    assert end < 2.6


def test_batches_repeat_by_their_seed_and_shift_by_one() -> None:
    for source in (text, synthetic):
        first, again, other = (next(source(70, 4, 16, seed=seed)) for seed in (5, 5, 6))
        assert torch.equal(first[0], again[0])
        assert not torch.equal(first[0], other[0])
        assert torch.equal(first[0][:, 1:], first[1][:, :-1])
        assert first[0].dtype == torch.int64
        assert int(first[0].max()) < 70


def test_a_vocabulary_that_cannot_hold_the_text_is_refused() -> None:
    with pytest.raises(ValueError, match=r"the text has \d+ characters; a vocabulary of 10 cannot hold them"):
        next(text(10, 1, 16, seed=0))


def test_a_window_longer_than_the_text_is_refused() -> None:
    with pytest.raises(ValueError, match=r"a window of 100000000 does not fit"):
        next(text(70, 1, 100_000_000, seed=0))


def test_a_sequence_longer_than_the_positions_is_refused() -> None:
    with pytest.raises(ValueError, match="a sequence of 17 tokens is longer than the block size 16"):
        build(SMALL)(batch(length=17)[0])
