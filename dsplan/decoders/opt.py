"""OPT as transformers runs it (models/opt/modeling_opt.py), with its norms before attention and MLP.

Legend: e bytes of an element, b micro batch, s sequence, h width, f width of the MLP, V vocabulary.
"""

from __future__ import annotations

from dsplan import operators
from dsplan.attention import QKV
from dsplan.decoders import attention
from dsplan.decoders.block import Block
from dsplan.decoders.ends import add_to_the_heads
from dsplan.decoders.gpt2 import Gpt2Embedding
from dsplan.decoders.pieces import INNER, POSITIONS, ROOT, STREAM
from dsplan.operators import BACKWARD, WORKING
from dsplan.tape import ENTER, ENTER_BACKWARD, LEAVE, Storage, Tensor


class OptBlock(Block):
    """LayerNorm, attention with scaled queries, LayerNorm, MLP; dropout is a function, not a module."""

    def block(self, x: Tensor) -> Tensor:
        t, d, f = self.tape, self.decoder, self.decoder.intermediate_size
        normalised = self.norm(x, "self_attn_layer_norm")
        attended = t.module("self_attn", self.attention, normalised)
        t.drop(normalised)
        middle = self.added(x, attended)
        normalised = self.norm(middle, "final_layer_norm")
        hidden = self.linear(normalised, "fc1", f, WORKING, bias=d.mlp_bias)
        t.drop(normalised)
        active = t.module("activation_fn", self.activate, hidden)
        t.drop(hidden)
        result = self.linear(active, "fc2", self.h, WORKING, bias=d.mlp_bias, n_in=f)
        t.drop(active)
        out = self.added(middle, result)
        t.drop(middle)
        return out

    def added(self, x: Tensor, result: Tensor) -> Tensor:
        """``x + dropout(result)``, which takes the place of ``result``."""
        t, p = self.tape, self.decoder.dropout
        dropped = operators.dropout(t, result, self.tokens * self.h, self.e, p, operators.RESIDUAL_MASK)
        t.drop(result)
        out = operators.add(t, x, dropped, STREAM)
        t.drop(dropped)
        return out

    def attention(self, x: Tensor) -> Tensor:
        t, d = self.tape, self.decoder
        plain = self.linear(x, "self_attn.q_proj", self.h, WORKING, bias=d.qkv_bias)
        q = self.scaled(plain)
        t.drop(plain)
        k, v = (self.linear(x, f"self_attn.{name}_proj", self.h, QKV, bias=d.qkv_bias) for name in ("k", "v"))
        context = attention.fused(t, q, k, v, self.grouped_shape())
        out = self.linear(context, "self_attn.out_proj", self.h, WORKING, bias=d.output_bias)
        t.drop(context, q, k, v)
        return out

    def scaled(self, x: Tensor) -> Tensor:
        """``x * scaling``: saves nothing."""
        t, size = self.tape, x.storage.size
        out = t.tensor(size, QKV)

        def backward(gradient: Storage) -> None:
            dx = t.allocate(size, BACKWARD)
            t.release(gradient)
            t.give(x, dx)

        return t.node(out, backward)


class OptEmbedding(Gpt2Embedding):
    """Tokens, and positions of every sample, embedded and added; the model's names keep both."""

    def forward(self, _: Tensor) -> Tensor:
        t, d, e = self.tape, self.decoder, self.e
        of_tokens, of_positions = (parameter.name.rpartition(".")[0] for parameter in d.before[:2])
        t.mark(ENTER, ROOT)
        t.mark(ENTER, INNER)
        t.mark(ENTER, of_tokens)
        tokens, places = (self.held(size) for size, _ in self.named)
        t.mark(LEAVE, of_tokens)
        t.mark(ENTER, of_positions)
        indices = t.tensor(8 * self.tokens, POSITIONS)
        t.mark(LEAVE, of_positions)
        out = t.tensor(self.stream_bytes, STREAM)

        def backward(gradient: Storage) -> None:
            t.mark(ENTER_BACKWARD, of_positions)
            t.allocate(e * d.before[1].numel, operators.PARAMETER_GRADIENT)
            t.drop(indices)
            t.parameter_gradient(d.before[1].name)
            t.mark(ENTER_BACKWARD, of_tokens)
            weight = t.allocate(e * d.before[0].numel, operators.PARAMETER_GRADIENT)
            t.release(gradient)
            if d.tied:
                add_to_the_heads(t, weight)
            t.parameter_gradient(d.before[0].name)

        t.node(out, backward)
        t.drop(tokens, places)
        return out
