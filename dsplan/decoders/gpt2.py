"""GPT-2 as transformers runs it (models/gpt2/modeling_gpt2.py): learned positions, one product for q, k and v.

Legend: e bytes of an element, b micro batch, s sequence, h width, f width of the MLP, T positions, V vocabulary.
"""

from __future__ import annotations

from dsplan import attention, operators
from dsplan.attention import AttentionShape
from dsplan.decoders.block import Block
from dsplan.decoders.eager import Eager
from dsplan.decoders.ends import Embedding, add_to_the_heads
from dsplan.decoders.parts import size_of, split
from dsplan.decoders.pieces import INNER, POSITIONS, ROOT, STREAM
from dsplan.operators import BACKWARD, WORKING
from dsplan.tape import ENTER, ENTER_BACKWARD, LEAVE, Storage, Tensor


class Gpt2Block(Block):
    """LayerNorm, attention, LayerNorm, MLP; both branches' results live until the block ends, by their names."""

    def block(self, x: Tensor) -> Tensor:
        """modeling_gpt2.py GPT2Block.forward."""
        t = self.tape
        normalised = self.norm(x, "ln_1")
        attended = t.module("attn", self.attention, normalised)
        middle = operators.add(t, attended, x, STREAM)
        t.drop(normalised)  # hidden_states is the sum's name from here on
        normalised = self.norm(middle, "ln_2")
        result = t.module("mlp", self.mlp, normalised)
        out = operators.add(t, middle, result, STREAM)
        t.drop(normalised, result, middle, attended)
        return out

    def attention(self, x: Tensor) -> Tensor:
        """modeling_gpt2.py GPT2Attention.forward."""
        t = self.tape
        qkv = self.linear(x, "attn.c_attn", 3 * self.h, attention.QKV, bias=True)
        context = self.elementary(qkv) if self.eager else self.fused(qkv)
        projected = self.linear(context, "attn.c_proj", self.h, WORKING, bias=True)
        t.drop(context)
        out = self.dropout(projected, "attn.resid_dropout")
        t.drop(projected, qkv)
        return out

    def fused(self, qkv: Tensor) -> Tensor:
        """Attention by a kernel, which takes views of what c_attn made and keeps them as one tensor."""
        d = self.decoder
        shape = AttentionShape(
            batch=self.b,
            length=self.s,
            heads=d.num_attention_heads,
            head_width=d.head_size,
            element_bytes=self.e,
            dropout=d.attention_dropout,
        )
        return attention.fused(self.tape, qkv, shape)

    def elementary(self, qkv: Tensor) -> Tensor:
        """``eager_attention_forward``, whose softmax stays in the model's type."""
        t = self.tape
        q, k, v = list[Tensor](split(t, qkv, [size_of(qkv) // 3] * 3))
        # That of k comes from its transpose, with its heads in order, and is read by the concatenation as it is.
        heads = self.decoder.num_attention_heads
        v, q = self.by_head(v, heads), self.by_head(q, heads)
        context = Eager(through_fp32=False, held=self.probabilities)(t, q, k, v, self.grouped_shape())
        t.drop(q, k, v)
        return context

    def mlp(self, x: Tensor) -> Tensor:
        """modeling_gpt2.py GPT2MLP.forward."""
        projected = self.plain_mlp(x, ("mlp.c_fc", "mlp.act", "mlp.c_proj"), bias=True)
        out = self.dropout(projected, "mlp.dropout")
        self.tape.drop(projected)
        return out


class Gpt2Embedding(Embedding):
    """Tokens and positions, embedded and added; the model's names keep both embeddings until its blocks are done."""

    def forward(self, _: Tensor) -> Tensor:
        """modeling_gpt2.py GPT2Model.forward, up to its first block."""
        t, d, e = self.tape, self.decoder, self.e
        t.mark(ENTER, ROOT)
        t.mark(ENTER, INNER)
        t.mark(ENTER, "transformer.wte")
        tokens = t.tensor(self.stream_bytes, STREAM)
        self.hold_leaf(tokens)
        if self.names_tokens:
            self.outlives(tokens, 0)
        places = self.outlives(t.tensor(*self.named[self.names_tokens]), int(self.names_tokens))
        t.mark(LEAVE, "transformer.wte")
        shared = [t.tensor(8 * self.s, POSITIONS)]
        t.mark(ENTER, "transformer.wpe")
        t.mark(LEAVE, "transformer.wpe")
        summed = t.tensor(self.stream_bytes, STREAM)

        def backward(gradient: Storage) -> None:
            # The position gradient is summed over the batch first (expand's backward).
            if not self.trains["transformer.wte.weight"]:
                t.drop(*shared)
                self.arrived("transformer.wte", gradient)
                return
            together = t.allocate(e * self.s * self.h, BACKWARD) if self.b > 1 else t.hold(gradient)
            t.mark(ENTER_BACKWARD, "transformer.wpe")
            operators.embedding_gradient(t, self.s, d.max_position_embeddings, self.h, e)
            t.release(together)
            t.drop(*shared)
            t.parameter_gradient("transformer.wpe.weight")
            t.mark(ENTER_BACKWARD, "transformer.wte")
            weight = operators.embedding_gradient(t, self.tokens, d.vocab_size, self.h, e)
            t.release(gradient)
            if d.tied:
                add_to_the_heads(t, weight)
            t.parameter_gradient("transformer.wte.weight")

        t.node(summed, backward)
        shared += self.hold_masks()
        numel = self.tokens * self.h

        def dropped(y: Tensor) -> Tensor:
            return operators.dropout(t, y, numel, e, d.embedding_dropout, operators.RESIDUAL_MASK, term=STREAM)

        if self.is_constant:
            out = self.constant(lambda: t.module("transformer.drop", dropped, summed))
            t.node(out, backward)
        else:
            out = t.module("transformer.drop", dropped, summed)
        t.drop(summed, tokens, places)
        return out

    def hold_masks(self) -> list[Tensor]:
        """The mask of elementary attention, which a name has as well, or, returned, checkpointed blocks."""
        self.hold_named(1 + self.names_tokens)
        return self.kept_masks()
