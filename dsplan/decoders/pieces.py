"""What the pieces of a decoder of transformers' have in common, and Llama's block, which most families share.

Every block does the same, so each piece is recorded once per workload. A piece owns its input: what it frees of the
residual stream it frees itself, and its output belongs to the piece that follows.

Legend: e bytes of an element, b micro batch, s sequence, h width, f width of the MLP, d head size, V vocabulary.
"""

from __future__ import annotations

from dsplan import operators
from dsplan.attention import QKV
from dsplan.decoders import attention, mlp
from dsplan.decoders.attention import GroupedShape
from dsplan.decoders.experts import Mixture
from dsplan.decoders.norms import NormShape, rms_norm, rms_norm_plus_one
from dsplan.decoders.rotary import contiguous_gradient, part_of, rotate, rotate_parts
from dsplan.families import Decoder
from dsplan.families.decoder import FUSED, GATED, GATED_FUSED, LAYER_NORM, RMS_PLUS_ONE, SANDWICH
from dsplan.kernels import Kernels
from dsplan.ledger import Term
from dsplan.operators import BACKWARD, WORKING
from dsplan.tape import Storage, Tape, Tensor
from dsplan.workload import Workload

STREAM = Term("residual stream", "e·b·s·h per half block", "modeling_llama.py LlamaDecoderLayer.forward")
NORMALISED = Term("norm outputs", "e·b·s·h each", "saved as the next linear's input")
LOGITS = Term("logits", "e·b·s·V", "modeling_llama.py lm_head: held until the loss is returned")
SCALARS = Term("loss and its scalars", "4 each", "aten nll_loss_forward")
POSITIONS = Term(
    "positions, cosines and sines", "8·s; e·s·d each", "modeling_llama.py LlamaRotaryEmbedding, for all blocks"
)
MASK = Term("causal mask", "e·s²", "masking_utils.py eager_mask, for all blocks")

#: Names under which hooks are marked: a block's own, the whole model, and the decoder in it without its head.
BLOCK, ROOT, INNER = "block", "model", "decoder"
EAGER = "eager"
#: The classes whose positions are learned, and embedded beside their tokens.
GPT2, OPT = "GPT2LMHeadModel", "OPTForCausalLM"


class Piece:
    """Sizes that all pieces share, and the modules that they have in common."""

    def __init__(self, decoder: Decoder, kind_of_attention: str, workload: Workload, kernels: Kernels) -> None:
        self.decoder = decoder
        self.eager = kind_of_attention == EAGER
        self.workload = workload
        self.tape = Tape(kernels)
        self.e = workload.element_bytes
        self.b, self.s, self.h = workload.micro_batch_size, workload.sequence_length, decoder.hidden_size
        self.tokens = self.b * self.s
        self.stream_bytes = self.e * self.tokens * self.h

    @property
    def named(self) -> tuple[tuple[int, Term], ...]:
        """Bytes, and of what, that only the model's own names hold while its blocks run.

        The embedding, where no block saves its input: it is there twice in the first block alone. The mask of eager
        attention, unless checkpointed blocks keep it for their second run.
        """
        rounded = self.tape.kernels.rounded
        if self.decoder.causal_lm == GPT2:  # positions of one sample; OPT's are of each
            return (self.whole_stream, STREAM), (int(rounded(self.e * self.s * self.h)), STREAM)
        if self.decoder.causal_lm == OPT:
            return (self.whole_stream, STREAM), (self.whole_stream, STREAM)
        if self.workload.activation_checkpointing != "none":
            return ()
        saved = self.e == 4 or self.decoder.norm == LAYER_NORM
        masks = ((int(rounded(self.e * self.s**2)), MASK),) * self.num_masks
        return masks if saved else (*masks, (self.whole_stream, STREAM))

    @property
    def num_masks(self) -> int:
        """Masks of eager attention: one for each width of window."""
        return len(set(self.decoder.windows)) if self.eager else 0

    @property
    def whole_stream(self) -> int:
        """Bytes of the stream as they count, a plain number for what one piece takes and another gives back."""
        return int(self.tape.kernels.rounded(self.stream_bytes))

    @property
    def root(self) -> str:
        """The module that holds embedding, blocks and last norm: ``model.`` of ``model.layers.``."""
        return self.decoder.prefix.rpartition(".")[0].rpartition(".")[0]

    def linear(self, x: Tensor, name: str, n_out: int, term: Term, *, bias: bool, n_in: int | None = None) -> Tensor:
        e, inputs = self.e, n_in or self.h
        size = e * self.tokens * n_out

        def apply(y: Tensor) -> Tensor:
            return operators.linear(self.tape, y, size, term, name, e * inputs * n_out, e * n_out if bias else 0)

        return self.tape.module(name, apply, x)

    def norm(self, x: Tensor, name: str, term: Term = NORMALISED, *, heads: int = 0) -> Tensor:
        """The family's norm of the stream, or of each of ``heads`` heads."""
        d = self.decoder
        rows, width = (self.tokens * heads, d.head_size) if heads else (self.tokens, self.h)

        def apply(y: Tensor) -> Tensor:
            if d.norm == LAYER_NORM:
                statistics = (4 if self.tape.kernels.float_norm_statistics else self.e) * rows
                return operators.layer_norm(self.tape, y, term, name, statistics, self.e * width)
            shape = NormShape(rows=rows, width=width, element_bytes=self.e)
            scale = rms_norm_plus_one if d.norm == RMS_PLUS_ONE else rms_norm
            return scale(self.tape, y, shape, name, term)

        return self.tape.module(name, apply, x)

    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class Block(Piece):
    """Norm, attention, norm, MLP with residuals, under activation checkpointing or not."""

    def forward(self, x: Tensor) -> Tensor:
        kind = self.workload.activation_checkpointing

        def block(y: Tensor) -> Tensor:
            return self.tape.module(BLOCK, self.block, y)

        out = block(x) if kind == "none" else self.tape.checkpoint(block, x, stops_early=kind == "torch")
        self.tape.drop(x)
        return out

    def block(self, x: Tensor) -> Tensor:
        t = self.tape
        sandwich = self.decoder.residual == SANDWICH
        middle = self.branch(x, "input_layernorm", "self_attn", "post_attention_layernorm" if sandwich else "")
        before = "pre_feedforward_layernorm" if sandwich else "post_attention_layernorm"
        out = self.branch(middle, before, "mlp", "post_feedforward_layernorm" if sandwich else "")
        t.drop(middle)
        return out

    def branch(self, x: Tensor, before: str, name: str, after: str) -> Tensor:
        """``x + after(module(before(x)))``: one half of a block."""
        t = self.tape
        normalised = self.norm(x, before)
        result = t.module(name, self.attention if name == "self_attn" else self.mlp, normalised)
        t.drop(normalised)
        if after:
            scaled = self.norm(result, after, WORKING)
            t.drop(result)
            result = scaled
        out = operators.add(t, x, result, STREAM)
        t.drop(result)
        return out

    # Attention.

    def attention(self, x: Tensor) -> Tensor:
        t, d = self.tape, self.decoder
        q, k, v = self.fused_projections(x) if d.qkv == FUSED else self.projections(x)
        joins = d.qkv == FUSED
        if joins:
            rotated_q, rotated_k = rotate_parts(t, q, k, (d.rotary_size, d.head_size), QKV)
        else:
            rotated_q, rotated_k = rotate(t, q, QKV), rotate(t, k, QKV)
        t.drop(q, k)
        shape = self.grouped_shape()
        if self.eager:
            context = attention.eager(t, rotated_q, rotated_k, v, shape, softcap=d.softcap is not None)
        else:
            context = attention.fused(t, rotated_q, rotated_k, v, shape)
            if joins:  # the result has its heads in the order of the queries, which cat has made contiguous
                context = attention.copied(t, context)
        width = d.num_attention_heads * d.head_size
        out = self.linear(context, "self_attn.o_proj", self.h, WORKING, bias=d.output_bias, n_in=width)
        t.drop(context, rotated_q, rotated_k, v)
        return out

    def grouped_shape(self) -> GroupedShape:
        """Sizes of the attention core."""
        d = self.decoder
        return GroupedShape(
            batch=self.b,
            length=self.s,
            heads=d.num_attention_heads,
            key_value_heads=d.num_key_value_heads,
            head_size=d.head_size,
            element_bytes=self.e,
            is_half=self.workload.precision == "fp16",
            dropout=d.attention_dropout,
        )

    def projections(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values from a product each; with norms of their heads where the family has them."""
        d = self.decoder
        q = self.projection(x, "q", d.num_attention_heads)
        k = self.projection(x, "k", d.num_key_value_heads)
        v = self.linear(x, "self_attn.v_proj", d.num_key_value_heads * d.head_size, QKV, bias=d.qkv_bias)
        return q, k, v

    def projection(self, x: Tensor, name: str, heads: int) -> Tensor:
        t, d = self.tape, self.decoder
        term = WORKING if d.qk_norm and self.e != 4 else QKV
        flat = self.linear(x, f"self_attn.{name}_proj", heads * d.head_size, term, bias=d.qkv_bias)
        by_head = contiguous_gradient(t, flat)
        t.drop(flat)
        if not d.qk_norm:
            return by_head
        normalised = self.norm(by_head, f"self_attn.{name}_norm", QKV, heads=heads)
        t.drop(by_head)
        return normalised

    def fused_projections(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Phi-3: slices of one product; each slice's gradient comes back in a tensor of the whole (slice_backward)."""
        t, d = self.tape, self.decoder
        widths = (d.num_attention_heads, d.num_key_value_heads, d.num_key_value_heads)
        whole = self.linear(x, "self_attn.qkv_proj", sum(widths) * d.head_size, QKV, bias=d.qkv_bias)
        q, k, v = (part_of(t, whole, self.e * self.tokens * heads * d.head_size) for heads in widths)
        t.drop(whole)
        by_head = contiguous_gradient(t, q), contiguous_gradient(t, k)
        t.drop(q, k)
        return *by_head, v

    # The MLP.

    def mlp(self, x: Tensor) -> Tensor:
        t, d, f = self.tape, self.decoder, self.decoder.intermediate_size
        if d.experts is not None:
            return Mixture(t, d.experts, tokens=self.tokens, width=self.h, element_bytes=self.e).run(x)
        if d.mlp == GATED_FUSED:
            return self.fused_mlp(x)
        assert d.mlp == GATED
        gate = self.linear(x, "mlp.gate_proj", f, mlp.GATED, bias=d.mlp_bias)
        active = t.module("mlp.act_fn", self.activate, gate)
        t.drop(gate)
        up = self.linear(x, "mlp.up_proj", f, mlp.GATED, bias=d.mlp_bias)
        product = mlp.multiply(t, active, up, mlp.GATED)
        t.drop(active, up)
        out = self.linear(product, "mlp.down_proj", self.h, WORKING, bias=d.mlp_bias, n_in=f)
        t.drop(product)
        return out

    def fused_mlp(self, x: Tensor) -> Tensor:
        """Phi-3: gate and up are halves of one product (modeling_phi3.py Phi3MLP.forward)."""
        t, f = self.tape, self.decoder.intermediate_size
        whole = self.linear(x, "mlp.gate_up_proj", 2 * f, mlp.GATED, bias=False)
        half = self.e * self.tokens * f
        gate, up = Tensor(t.hold(whole.storage)), Tensor(t.hold(whole.storage))
        halves: list[Storage] = []

        def backward_chunk(_: Storage) -> None:
            joined = t.allocate(whole.storage.size, BACKWARD)
            for gradient in halves:
                t.release(gradient)
            t.give(whole, joined)

        def backward_gate(gradient: Storage) -> None:
            halves.append(gradient)
            backward_chunk(gradient)

        t.node(gate, backward_gate)
        t.node(up, halves.append)
        kept = t.save(gate)
        active = t.tensor(half, mlp.GATED)

        def backward_activation(gradient: Storage) -> None:
            dx = t.allocate(half, BACKWARD)
            t.release(gradient)
            t.forget(kept)
            t.give(gate, dx)

        t.node(active, backward_activation)
        kept_both = t.save(up), t.save(active)
        product = t.tensor(half, mlp.GATED)

        def backward_product(gradient: Storage) -> None:
            d_up, d_active = t.allocate(half, BACKWARD), t.allocate(half, BACKWARD)
            t.release(gradient)
            t.forget(*kept_both)
            t.give(up, d_up)
            t.give(active, d_active)

        t.node(product, backward_product)
        t.drop(active)
        out = self.linear(product, "mlp.down_proj", self.h, WORKING, bias=False, n_in=f)
        t.drop(product, gate, up, whole)
        return out

    def activate(self, x: Tensor) -> Tensor:
        name = self.decoder.activation
        if name == "gelu_new":
            return operators.gelu_new(self.tape, x, mlp.GATED)
        return (mlp.relu if name == "relu" else mlp.activation)(self.tape, x, mlp.GATED)
