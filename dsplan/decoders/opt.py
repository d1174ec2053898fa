"""OPT as transformers runs it (models/opt/modeling_opt.py): norms before attention and MLP, or, of 350M, behind them.

Legend: e bytes of an element, b micro batch, s sequence, h width, f width of the MLP, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

from dsplan import operators
from dsplan.attention import QKV
from dsplan.decoders import attention
from dsplan.decoders.block import Block
from dsplan.decoders.eager import Eager
from dsplan.decoders.ends import Head
from dsplan.decoders.gpt2 import Gpt2Embedding
from dsplan.decoders.linears import scaled
from dsplan.decoders.parts import viewed
from dsplan.decoders.pieces import INNER, NORMALISED, POSITIONS, ROOT, STREAM
from dsplan.families.decoder import POST_NORM
from dsplan.operators import WORKING
from dsplan.tape import ENTER, ENTER_BACKWARD, LEAVE, Backward, Storage, Tensor


class OptBlock(Block):
    """LayerNorm, attention with scaled queries, LayerNorm, MLP; dropout is a function, not a module."""

    def block(self, x: Tensor) -> Tensor:
        """modeling_opt.py OPTDecoderLayer.forward."""
        t = self.tape
        middle = self.half(x, "self_attn_layer_norm", lambda y: t.module("self_attn", self.attention, y))
        out = self.half(middle, "final_layer_norm", self.mlp)
        t.drop(middle)
        return out

    def half(self, x: Tensor, norm: str, branch: Callable[[Tensor], Tensor]) -> Tensor:
        """``x + branch(norm(x))``, or with its norm last ``norm(x + branch(x))``."""
        t = self.tape
        if self.decoder.residual == POST_NORM:
            summed = self.added(x, branch(x))
            out = self.norm(summed, norm, STREAM)
            t.drop(summed)
            return out
        normalised = self.norm(x, norm)
        result = branch(normalised)
        t.drop(normalised)
        return self.added(x, result)

    def mlp(self, x: Tensor) -> Tensor:
        """Of tokens in one dimension."""
        names, bias = ("fc1", "activation_fn", "fc2"), self.decoder.mlp_bias
        owned = self.decoder.residual != POST_NORM
        return self.plain_mlp(x, names, bias=bias, linear=self.flat_linear, hidden=WORKING, owned=owned)

    def added(self, x: Tensor, result: Tensor) -> Tensor:
        """``x + dropout(result)``, in the place of ``result``, and in another shape: tokens in one dimension or two."""
        t, p = self.tape, self.decoder.dropout
        dropped = operators.dropout(t, result, self.tokens * self.h, self.e, p, operators.RESIDUAL_MASK)
        t.drop(result)
        summed = operators.add(t, x, dropped, STREAM)
        out = viewed(t, summed)
        t.drop(dropped, summed)
        return out

    def attention(self, x: Tensor) -> Tensor:
        """modeling_opt.py OPTAttention.forward."""
        t, d, heads = self.tape, self.decoder, self.decoder.num_attention_heads
        plain = self.linear(x, "self_attn.q_proj", self.h, QKV, bias=d.qkv_bias)
        q = scaled(self.tape, plain, QKV)
        t.drop(plain)
        if self.eager:
            q = self.by_head(q, heads)
        k = self.linear(x, "self_attn.k_proj", self.h, QKV, bias=d.qkv_bias)
        if self.eager and self.b > 1:
            k = self.by_head(k, heads)  # its gradient is of its transpose: of one sample the product reads it as it is
        v = self.linear(x, "self_attn.v_proj", self.h, QKV, bias=d.qkv_bias)
        if self.eager:
            v = self.by_head(v, heads)
            context = Eager(held=self.probabilities)(t, q, k, v, self.grouped_shape())
        else:
            context = attention.fused(t, q, k, v, self.grouped_shape())
        out = self.linear(context, "self_attn.out_proj", self.h, WORKING, bias=d.output_bias)
        t.drop(context, q, k, v)
        return out


class OptEmbedding(Gpt2Embedding):
    """Tokens, projected or not, and positions of every sample, added; the model's names keep both."""

    def forward(self, _: Tensor) -> Tensor:
        """modeling_opt.py OPTDecoder.forward, up to its first block."""
        t, d = self.tape, self.decoder
        of_tokens, of_positions = (parameter.name.rpartition(".")[0] for parameter in d.before[:2])
        width = d.before[0].shape[1]
        is_projected = width != self.h
        for each in (ROOT, INNER, of_tokens):
            t.mark(ENTER, each)
        tokens = t.tensor(self.e * self.tokens * width, STREAM)
        self.hold_leaf(tokens)
        if not is_projected and self.names_tokens:
            self.outlives(tokens, 0)
        t.node(tokens, self.tokens_backward(of_tokens, width))
        t.mark(LEAVE, of_tokens)
        shared = self.hold_masks()
        t.mark(ENTER, of_positions)
        shared.append(t.tensor(8 * self.tokens, POSITIONS))
        places = self.outlives(t.tensor(self.stream_bytes, STREAM), int(self.names_tokens))
        t.node(places, self.positions_backward(of_positions, shared))
        t.mark(LEAVE, of_positions)
        if is_projected:
            narrow, tokens = (
                tokens,
                self.linear(tokens, f"{self.root}.project_in", self.h, STREAM, bias=False, n_in=width),
            )
            self.outlives(tokens, 0)
            t.drop(narrow)
        out = operators.add(t, tokens, places, STREAM)
        t.drop(tokens, places)
        return out

    def positions_backward(self, name: str, shared: list[Tensor]) -> Backward:
        """The backward pass of the positions' embedding ``name``; ``shared`` goes with it."""
        t = self.tape

        def backward(gradient: Storage) -> None:
            if not self.trains[f"{name}.weight"]:
                t.release(gradient)
                t.drop(*shared)
                return
            t.mark(ENTER_BACKWARD, name)
            operators.embedding_gradient(t, self.tokens, self.decoder.before[1].shape[0], self.h, self.e)
            t.release(gradient)
            t.drop(*shared)
            t.parameter_gradient(f"{name}.weight")

        return backward


class OptHead(Head):
    """The last norm, where norms come first, and the projection to the embedding's width, where that is another."""

    @property
    def width(self) -> int:
        """Elements of an embedded token: of 350M fewer than of the stream."""
        return self.decoder.before[0].shape[1]

    def last(self, x: Tensor) -> Tensor:
        """modeling_opt.py OPTDecoder.forward, behind its last block."""
        norm, projection = f"{self.root}.final_layer_norm", f"{self.root}.project_out"
        if f"{norm}.weight" in self.trains:
            normalised = self.norm(x, norm)
            self.tape.drop(x)
            x = normalised
        if f"{projection}.weight" in self.trains:
            projected = self.linear(x, projection, self.width, NORMALISED, bias=False)
            self.tape.drop(x)
            x = projected
        return x
