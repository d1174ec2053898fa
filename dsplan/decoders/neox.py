"""GPT-NeoX and StableLM: LayerNorm, and heads of which a part rotates and is joined with the rest.

models/gpt_neox/modeling_gpt_neox.py, models/stablelm/modeling_stablelm.py. Legend: e bytes of an element, b micro
batch, s sequence, h width, f width of the MLP.
"""

from __future__ import annotations

from dsplan import operators
from dsplan.attention import QKV
from dsplan.decoders.block import Block
from dsplan.decoders.eager import Eager
from dsplan.decoders.ends import Embedding
from dsplan.decoders.parts import contiguous_gradient, size_of, split
from dsplan.decoders.pieces import STREAM
from dsplan.decoders.rotary import rotate_parts_first
from dsplan.decoders.unfused import sdpa
from dsplan.families.decoder import PARALLEL
from dsplan.operators import WORKING
from dsplan.tape import Tensor


class NeoxEmbedding(Embedding):
    """As Llama's, or with dropout, whose input the model's name has until its blocks are done."""

    def embedded(self, name: str, shared: list[Tensor]) -> Tensor:
        """The tokens' embeddings (modeling_gpt_neox.py GPTNeoXModel.forward ``inputs_embeds``)."""
        out = super().embedded(name, shared)
        if not self.keeps_embedding:
            return out
        self.hold_leaf(out)
        return out if self.has_leaf else self.outlives(out, 0)

    def dropped(self, x: Tensor) -> Tensor:
        """``emb_dropout``."""
        if not self.keeps_embedding:
            return x
        t, numel, p = self.tape, self.tokens * self.h, self.decoder.embedding_dropout

        def drop(y: Tensor) -> Tensor:
            return operators.dropout(t, y, numel, self.e, p, operators.RESIDUAL_MASK, term=STREAM)

        if self.is_constant:
            out = self.constant(lambda: t.module("gpt_neox.emb_dropout", drop, x))
            t.node(out, lambda gradient: t.give(x, gradient))
        else:
            out = t.module("gpt_neox.emb_dropout", drop, x)
        t.drop(x)
        return out


class JoinedBlock(Block):
    """Attention over heads that are joined of a rotated part and the rest."""

    def joined_attention(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The context, copied: it has its heads in the order of the queries, which cat has made contiguous."""
        t, shape = self.tape, self.grouped_shape()
        if self.eager:
            return Eager(by_head=True, held=self.probabilities)(t, q, k, v, shape)
        return sdpa(t, q, k, v, shape, by_head=True)


class NeoxBlock(JoinedBlock):
    """Attention and MLP beside each other, or one after the other."""

    def block(self, x: Tensor) -> Tensor:
        """modeling_gpt_neox.py GPTNeoXLayer.forward."""
        t = self.tape
        normalised = self.norm(x, "input_layernorm")
        attended = t.module("attention", self.attention, normalised)
        t.drop(normalised)
        attended = self.dropped(attended, "post_attention_dropout")
        parallel = self.decoder.residual == PARALLEL
        if not parallel:
            middle = operators.add(t, attended, x, STREAM)
            t.drop(attended)
            attended = middle
        normalised = self.norm(x if parallel else attended, "post_attention_layernorm")
        result = t.module("mlp", self.mlp, normalised)
        t.drop(normalised)
        result = self.dropped(result, "post_mlp_dropout")
        out = operators.add(t, result, attended, STREAM)
        if parallel:
            both, out = out, operators.add(t, out, x, STREAM)
            t.drop(both)
        t.drop(result, attended)
        return out

    def attention(self, x: Tensor) -> Tensor:
        """modeling_gpt_neox.py GPTNeoXAttention.forward."""
        t, d = self.tape, self.decoder
        flat = self.linear(x, "attention.query_key_value", 3 * self.h, QKV, bias=d.qkv_bias)
        whole = contiguous_gradient(t, flat)
        t.drop(flat)
        q, k, v = split(t, whole, [size_of(whole) // 3] * 3)
        t.drop(whole)
        joined_q, joined_k = rotate_parts_first(t, q, k, (d.rotary_size, d.head_size), QKV)
        t.drop(q, k)
        context = self.joined_attention(joined_q, joined_k, v)
        out = self.linear(context, "attention.dense", self.h, WORKING, bias=d.output_bias)
        t.drop(context, joined_q, joined_k, v)
        return out

    def mlp(self, x: Tensor) -> Tensor:
        """modeling_gpt_neox.py GPTNeoXMLP.forward."""
        return self.plain_mlp(x, ("mlp.dense_h_to_4h", "mlp.act", "mlp.dense_4h_to_h"), bias=True)

    def dropped(self, x: Tensor, name: str) -> Tensor:
        """Dropout of the residual stream, in the place of ``x``."""
        out = self.dropout(x, name)
        self.tape.drop(x)
        return out


class StableLmBlock(JoinedBlock):
    """Attention, then a gated MLP; both results live until the block ends, by their names."""

    def block(self, x: Tensor) -> Tensor:
        """modeling_stablelm.py StableLmDecoderLayer.forward."""
        t = self.tape
        normalised = self.norm(x, "input_layernorm")
        attended = t.module("self_attn", self.attention, normalised)
        if self.decoder.residual == PARALLEL:
            return self.beside(x, normalised, attended)
        middle = operators.add(t, x, attended, STREAM)
        again = self.norm(middle, "post_attention_layernorm")
        result = t.module("mlp", self.mlp, again)
        t.drop(again)
        out = operators.add(t, middle, result, STREAM)
        t.drop(result, middle, attended, normalised)
        return out

    def beside(self, x: Tensor, normalised: Tensor, attended: Tensor) -> Tensor:
        """``x + attended + mlp(normalised)``, of one norm."""
        t = self.tape
        result = t.module("mlp", self.mlp, normalised)
        both = operators.add(t, x, attended, WORKING)
        out = operators.add(t, both, result, STREAM)
        t.drop(both, result, attended, normalised)
        return out

    def attention(self, x: Tensor) -> Tensor:
        """modeling_stablelm.py StableLmAttention.forward."""
        t, d = self.tape, self.decoder
        held: list[Tensor] = []
        q, k, v = self.projections(x)
        joined_q, joined_k = rotate_parts_first(t, q, k, (d.rotary_size, d.head_size), QKV, held)
        t.drop(q, k)
        context = self.joined_attention(joined_q, joined_k, v)
        out = self.linear(context, "self_attn.o_proj", self.h, WORKING, bias=False)
        t.drop(context, v, *held, joined_q, joined_k)
        return out

    def projections(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Three products, and then their heads."""
        d = self.decoder
        widths = {"q": d.num_attention_heads, "k": d.num_key_value_heads, "v": d.num_key_value_heads}
        q, k, v = (
            self.linear(x, f"self_attn.{name}_proj", heads * d.head_size, QKV, bias=d.qkv_bias)
            for name, heads in widths.items()
        )
        q, k = self.by_head(q, widths["q"]), self.by_head(k, widths["k"])
        return q, k, self.by_head(v, widths["v"]) if self.is_elementary else v
