"""Multi-head latent attention as DeepSeek V2 and V3 run it while they train.

models/deepseek_v2/modeling_deepseek_v2.py, models/deepseek_v3/modeling_deepseek_v3.py: keys and values are expanded
from their latent for every head, so that the attention core is a plain one whose values are narrower than its keys.

Legend: e bytes of an element, T = b·s tokens, a heads, p and r plain and rotating elements of a head of queries and
keys, v elements of a head of values.
"""

from __future__ import annotations

from dataclasses import replace

from dsplan.attention import QKV
from dsplan.decoders import attention
from dsplan.decoders.attention import GroupedShape
from dsplan.decoders.block import Block
from dsplan.decoders.classes import DEEPSEEK_V2
from dsplan.decoders.eager import Eager
from dsplan.decoders.parts import Part, contiguous_gradient, expanded, joined, split
from dsplan.decoders.rotary import rotate, rotate_complex, rotate_pairs
from dsplan.families.decoder import Latent
from dsplan.ledger import Term
from dsplan.operators import BACKWARD, WORKING
from dsplan.tape import Storage, Tape, Tensor

LATENTS = Term("latents of queries, keys and values", "e·T·rank each", "modeling_deepseek_v3.py q_a_proj, kv_a_proj")
KEYS = Term("keys of all heads", "e·T·a·(p + r)", "modeling_deepseek_v3.py expand_kv: new_empty, then copied into")


class LatentBlock(Block):
    """Llama's block with latent attention."""

    @property
    def latent(self) -> Latent:
        """Ranks and widths of the decoder's latents."""
        assert self.decoder.latent is not None
        return self.decoder.latent

    def grouped_shape(self) -> GroupedShape:
        """Of the core: keys and values have as many heads as queries, and values a width of their own."""
        heads = self.decoder.num_attention_heads
        return replace(super().grouped_shape(), key_value_heads=heads, value_size=self.latent.value)

    def attention(self, x: Tensor) -> Tensor:
        """modeling_deepseek_v3.py DeepseekV3Attention.forward."""
        t, d, latent = self.tape, self.decoder, self.latent
        element, heads = self.e * self.tokens, d.num_attention_heads
        flat = self.queries(x)
        whole = contiguous_gradient(t, flat)
        t.drop(flat)
        plain_q, rotary_q = split(t, whole, [element * heads * latent.plain, element * heads * latent.rotary])
        compressed = self.linear(
            x, "self_attn.kv_a_proj_with_mqa", latent.rank + latent.rotary, LATENTS, bias=d.qkv_bias
        )
        narrow, rotary_k = split(t, compressed, [element * latent.rank, element * latent.rotary])
        normalised = self.norm(narrow, "self_attn.kv_a_layernorm", LATENTS, width=latent.rank)
        turned_q, turned_k = self.rotated(rotary_q, rotary_k)
        q = joined(t, turned_q, plain_q, element * heads * d.head_size, QKV)
        k, v = self.expanded(normalised, turned_k)
        if self.eager:
            context = Eager(by_head=True, held=self.probabilities)(t, q, k, v, self.grouped_shape())
        else:
            context = attention.fused(t, q, k, v, self.grouped_shape())
        t.drop(normalised)
        width = heads * latent.value
        out = self.linear(context, "self_attn.o_proj", self.h, WORKING, bias=d.output_bias, n_in=width)
        t.drop(context, q, k, v, whole, plain_q, rotary_q, turned_q)
        t.drop(compressed, narrow, rotary_k, turned_k)
        return out

    def queries(self, x: Tensor) -> Tensor:
        """Of all heads (e·T·a·(p + r)), through their latent where they have one."""
        t, d, rank = self.tape, self.decoder, self.latent.query_rank
        width = d.num_attention_heads * d.head_size
        if rank is None:
            return self.linear(x, "self_attn.q_proj", width, QKV, bias=False)
        narrow = self.linear(x, "self_attn.q_a_proj", rank, WORKING, bias=d.qkv_bias)
        normalised = self.norm(narrow, "self_attn.q_a_layernorm", LATENTS, width=rank)
        t.drop(narrow)
        out = self.linear(normalised, "self_attn.q_b_proj", width, QKV, bias=False, n_in=rank)
        t.drop(normalised)
        return out

    def rotated(self, q: Part, k: Part) -> tuple[Tensor, Tensor]:
        """The rotating parts of the queries, and of the one key that all heads share."""
        t = self.tape
        if self.latent.interleaved:
            return rotate_pairs(t, q, k, WORKING)
        if self.decoder.causal_lm == DEEPSEEK_V2:
            return rotate_complex(t, q, k, self.e, 4 * self.s * self.latent.rotary)
        return rotate(t, q, WORKING), rotate(t, k, WORKING)

    def expanded(self, latents: Tensor, rotated: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of every head (DeepseekV3Attention.expand_kv)."""
        t, latent, heads = self.tape, self.latent, self.decoder.num_attention_heads
        element = self.e * self.tokens * heads
        width = heads * (latent.plain + latent.value)
        flat = self.linear(latents, "self_attn.kv_b_proj", width, QKV, bias=False, n_in=latent.rank)
        whole = contiguous_gradient(t, flat)
        t.drop(flat)
        plain, values = split(t, whole, [element * latent.plain, element * latent.value])
        spread = expanded(t, rotated, element * latent.rotary)
        size = element * (latent.plain + latent.rotary)
        keys = _copied_into(t, plain, spread, size)
        t.drop(plain, spread, whole)
        return keys, values


def _copied_into(t: Tape, plain: Part, spread: Part, size: int) -> Tensor:
    """``new_empty``, into whose slices two tensors are copied (torch/csrc/autograd/functions/tensor.cpp CopySlices).

    Each copy's backward takes the gradient as a whole once more and the slice by itself; of the second copy the slice
    of what was there before needs a gradient too, of zeros.
    """
    first = t.tensor(size, KEYS)
    out = t.view(first.storage)

    def backward_plain(gradient: Storage) -> None:
        whole = t.allocate(size, BACKWARD)
        part = t.allocate(plain.size, BACKWARD)
        t.release(whole)
        t.release(gradient)
        t.give(plain, part)

    def backward_spread(gradient: Storage) -> None:
        whole = t.allocate(size, BACKWARD)
        part = t.allocate(spread.size, BACKWARD)
        t.temporary(spread.size, BACKWARD)
        t.release(gradient)
        t.give(spread, part)
        t.give(first, whole)

    t.node(first, backward_plain)
    t.node(out, backward_spread)
    t.drop(first)
    return out
