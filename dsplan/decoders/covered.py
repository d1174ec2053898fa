"""Which decoders the formulas cover, and their pieces."""

from __future__ import annotations

from dsplan.decoders.block import Block
from dsplan.decoders.bloom import BloomBlock, BloomEmbedding
from dsplan.decoders.classes import (
    BLOOM,
    DEEPSEEK_V2,
    DEEPSEEK_V3,
    FALCON,
    GEMMA3,
    GPT2,
    GPT_NEOX,
    OPT,
    QWEN2_MOE,
    STABLELM,
)
from dsplan.decoders.ends import Embedding, Head
from dsplan.decoders.falcon import FalconBlock
from dsplan.decoders.gpt2 import Gpt2Block, Gpt2Embedding
from dsplan.decoders.kinds import kinds_of
from dsplan.decoders.latent import LatentBlock
from dsplan.decoders.masks import has_alibi
from dsplan.decoders.neox import NeoxBlock, NeoxEmbedding, StableLmBlock
from dsplan.decoders.opt import OptBlock, OptEmbedding, OptHead
from dsplan.decoders.pieces import EAGER, STREAM, Piece
from dsplan.families import Decoder
from dsplan.families.decoder import FUSED, GATED_FUSED, LAYER_NORM
from dsplan.kernels import Kernels
from dsplan.workload import Workload

__all__ = ["STREAM", "Embedding", "Head", "Piece", "blocks_of", "pieces_of", "uncovered", "varies"]

#: Blocks of their own, by transformers' class; the other classes have Llama's.
BLOCKS: dict[str, type[Block]] = {
    GPT2: Gpt2Block,
    GPT_NEOX: NeoxBlock,
    STABLELM: StableLmBlock,
    OPT: OptBlock,
    BLOOM: BloomBlock,
    FALCON: FalconBlock,
    DEEPSEEK_V2: LatentBlock,
    DEEPSEEK_V3: LatentBlock,
}
#: Embeddings of their own.
EMBEDDINGS: dict[str, type[Embedding]] = {
    GPT2: Gpt2Embedding,
    GPT_NEOX: NeoxEmbedding,
    OPT: OptEmbedding,
    BLOOM: BloomEmbedding,
}
#: Ends of their own.
HEADS: dict[str, type[Head]] = {OPT: OptHead}
#: Classes whose dropout in the residual stream is written down.
DROPPING = (GPT2, OPT, GPT_NEOX)
#: transformers' classes whose blocks are written down here.
CLASSES = frozenset(
    {
        *BLOCKS,
        "LlamaForCausalLM",
        "MistralForCausalLM",
        "Qwen2ForCausalLM",
        "Qwen3ForCausalLM",
        "GemmaForCausalLM",
        "Gemma2ForCausalLM",
        GEMMA3,
        "Phi3ForCausalLM",
        "MixtralForCausalLM",
        QWEN2_MOE,
        "Qwen3MoeForCausalLM",
    }
)


#: Activations of several operators (transformers activations.py); gelu_new is written down for MLPs of plain products.
ELEMENTARY = ("gelu_fast", "quick_gelu")


def pieces_of(decoder: Decoder, attention: str, workload: Workload, kernels: Kernels) -> tuple[Embedding, Block, Head]:
    """Embedding, block and head of ``decoder``, each on a tape of its own."""
    given = (decoder, attention, workload, kernels)
    kinds = EMBEDDINGS.get(decoder.causal_lm, Embedding), BLOCKS.get(decoder.causal_lm, Block)
    return kinds[0](*given), kinds[1](*given), HEADS.get(decoder.causal_lm, Head)(*given)


def blocks_of(decoder: Decoder, attention: str, workload: Workload, kernels: Kernels) -> tuple[Block, ...]:
    """The block of each layer, each on a tape of its own; layers of one kind have the same one."""
    kinds = kinds_of(decoder, workload, eager=attention == EAGER)
    block = BLOCKS.get(decoder.causal_lm, Block)
    made = {kind: block(decoder, attention, workload, kernels, kind) for kind in dict.fromkeys(kinds)}
    return tuple(made[kind] for kind in kinds)


def varies(decoder: Decoder, attention: str, workload: Workload) -> bool:
    """Whether layers are of several kinds, or some parameters are not trained."""
    return not decoder.trained or len(set(kinds_of(decoder, workload, eager=attention == EAGER))) > 1


def uncovered(decoder: Decoder, attention: str) -> str | None:
    """Why the formulas have no activations for ``decoder``; None where they have."""
    own, stable = decoder.causal_lm in BLOCKS, decoder.causal_lm == STABLELM
    joins = own or decoder.qkv == FUSED
    plain = decoder.norm == LAYER_NORM and not any(len(each.shape) == 1 for each in decoder.kinds[0])
    falcon = decoder.causal_lm == FALCON
    alibi, grouped = has_alibi(decoder), decoder.num_key_value_heads < decoder.num_attention_heads
    in_one_product = decoder.experts is not None or decoder.mlp == GATED_FUSED
    used = [decoder.kinds[kind] for kind in set(decoder.layers)]
    dense = any(not any(f"{decoder.leaf}.experts." in each.name for each in kind) for kind in used)
    reasons = (
        (decoder.causal_lm not in CLASSES, f"the activations of {decoder.causal_lm}"),
        (decoder.beyond_formulas, f"{', '.join(decoder.beyond_formulas)} of {decoder.causal_lm}"),
        (decoder.leaf and decoder.experts is not None and dense, f"layers without experts of {decoder.causal_lm}"),
        (not joins and decoder.rotary_size != decoder.head_size, "heads that rotate in part"),
        (stable and decoder.qk_norm, "norms of heads of StableLM"),
        (alibi and (attention == EAGER or grouped), "Falcon with ALiBi but for sdpa of a head of keys for each query"),
        (falcon and decoder.mlp_bias and not decoder.trained, "parameters that are not trained of Falcon with biases"),
        (plain, "norms without weights"),
        (
            decoder.activation in ELEMENTARY or (decoder.activation == "gelu_new" and in_one_product),
            f"{decoder.activation} in the MLP of {decoder.causal_lm}",
        ),
        (decoder.upcasts_scores and attention == EAGER, "eager attention with reorder_and_upcast_attn"),
        (
            decoder.dropout and decoder.causal_lm not in DROPPING,
            f"dropout in the residual stream of {decoder.causal_lm}",
        ),
    )
    return next((what for holds, what in reasons if holds), None)
