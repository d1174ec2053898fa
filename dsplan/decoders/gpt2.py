"""GPT-2 as transformers runs it (models/gpt2/modeling_gpt2.py): learned positions, one product for q, k and v.

Legend: e bytes of an element, b micro batch, s sequence, h width, f width of the MLP, T positions, V vocabulary.
"""

from __future__ import annotations

from dsplan import attention, operators
from dsplan.attention import AttentionShape
from dsplan.decoders import mlp
from dsplan.decoders.block import Block
from dsplan.decoders.ends import Embedding, add_to_the_heads
from dsplan.decoders.pieces import INNER, POSITIONS, ROOT, STREAM
from dsplan.ledger import Term
from dsplan.operators import BACKWARD, WORKING
from dsplan.tape import ENTER, ENTER_BACKWARD, LEAVE, Storage, Tensor


class Gpt2Block(Block):
    """LayerNorm, attention, LayerNorm, MLP; both branches' results live until the block ends, by their names."""

    def block(self, x: Tensor) -> Tensor:
        t = self.tape
        normalised = self.norm(x, "ln_1")
        attended = t.module("attn", self.attention, normalised)
        t.drop(normalised)
        middle = operators.add(t, attended, x, STREAM)
        normalised = self.norm(middle, "ln_2")
        result = t.module("mlp", self.mlp, normalised)
        t.drop(normalised)
        out = operators.add(t, middle, result, STREAM)
        t.drop(result, middle, attended)
        return out

    def attention(self, x: Tensor) -> Tensor:
        t, d = self.tape, self.decoder
        shape = AttentionShape(
            batch=self.b,
            length=self.s,
            heads=d.num_attention_heads,
            head_width=d.head_size,
            element_bytes=self.e,
            dropout=d.attention_dropout,
        )
        qkv = self.linear(x, "attn.c_attn", 3 * self.h, attention.QKV, bias=True)
        context = attention.fused(t, qkv, shape)
        projected = self.linear(context, "attn.c_proj", self.h, WORKING, bias=True)
        t.drop(context)
        out = self.dropout(projected, "attn.resid_dropout", WORKING)
        t.drop(projected, qkv)
        return out

    def mlp(self, x: Tensor) -> Tensor:
        t, f = self.tape, self.decoder.intermediate_size
        hidden = self.linear(x, "mlp.c_fc", f, mlp.GATED, bias=True)
        active = t.module("mlp.act", self.activate, hidden)
        t.drop(hidden)
        projected = self.linear(active, "mlp.c_proj", self.h, WORKING, bias=True, n_in=f)
        t.drop(active)
        out = self.dropout(projected, "mlp.dropout", WORKING)
        t.drop(projected)
        return out

    def dropout(self, x: Tensor, name: str, term: Term) -> Tensor:
        numel, p = self.tokens * self.h, self.decoder.dropout
        return self.tape.module(
            name, lambda y: operators.dropout(self.tape, y, numel, self.e, p, operators.RESIDUAL_MASK, term=term), x
        )


class Gpt2Embedding(Embedding):
    """Tokens and positions, embedded and added; the model's names keep both embeddings until its blocks are done."""

    def forward(self, _: Tensor) -> Tensor:
        t, d, e = self.tape, self.decoder, self.e
        t.mark(ENTER, ROOT)
        t.mark(ENTER, INNER)
        t.mark(ENTER, "transformer.wte")
        tokens, places = (self.held(size) for size, _ in self.named)
        t.mark(LEAVE, "transformer.wte")
        positions = t.tensor(8 * self.s, POSITIONS)
        t.mark(ENTER, "transformer.wpe")
        t.mark(LEAVE, "transformer.wpe")
        summed = t.tensor(self.stream_bytes, STREAM)

        def backward(gradient: Storage) -> None:
            # The position gradient is summed over the batch first (expand's backward).
            together = t.allocate(e * self.s * self.h, BACKWARD) if self.b > 1 else t.hold(gradient)
            t.mark(ENTER_BACKWARD, "transformer.wpe")
            t.allocate(e * d.max_position_embeddings * self.h, operators.PARAMETER_GRADIENT)
            t.release(together)
            t.drop(positions)
            t.parameter_gradient("transformer.wpe.weight")
            t.mark(ENTER_BACKWARD, "transformer.wte")
            weight = t.allocate(e * d.vocab_size * self.h, operators.PARAMETER_GRADIENT)
            t.release(gradient)
            if d.tied:
                add_to_the_heads(t, weight)
            t.parameter_gradient("transformer.wte.weight")

        t.node(summed, backward)
        numel = self.tokens * self.h
        out = t.module(
            "transformer.drop",
            lambda y: operators.dropout(t, y, numel, e, d.dropout, operators.RESIDUAL_MASK, term=STREAM),
            summed,
        )
        t.drop(summed, tokens, places)
        return out

    def held(self, size: int) -> Tensor:
        """A tensor that the head's piece frees: its name goes when the model's forward pass ends."""
        storage = self.tape.allocate(size, STREAM)
        storage.silent = True
        kind, _, term = self.tape.events[-1]
        self.tape.events[-1] = (kind, size, term)
        return Tensor(storage)
