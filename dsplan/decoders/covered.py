"""Which decoders the formulas cover, and their pieces."""

from __future__ import annotations

from dsplan.decoders.block import Block
from dsplan.decoders.bloom import BloomBlock, BloomEmbedding
from dsplan.decoders.ends import Embedding, Head
from dsplan.decoders.falcon import FalconBlock
from dsplan.decoders.gpt2 import Gpt2Block, Gpt2Embedding
from dsplan.decoders.kinds import kinds_of
from dsplan.decoders.latent import LatentBlock
from dsplan.decoders.neox import NeoxBlock, StableLmBlock
from dsplan.decoders.opt import OptBlock, OptEmbedding
from dsplan.decoders.pieces import BLOOM, EAGER, FALCON, GPT2, OPT, STREAM, Piece
from dsplan.families import Decoder
from dsplan.families.decoder import AFTER_NORM, FUSED, GROUPED, PARALLEL
from dsplan.kernels import Kernels
from dsplan.workload import Workload

__all__ = ["STREAM", "Embedding", "Head", "Piece", "blocks_of", "pieces_of", "uncovered", "varies"]

#: Blocks of their own, by transformers' class; the other classes have Llama's.
BLOCKS: dict[str, type[Block]] = {
    GPT2: Gpt2Block,
    "GPTNeoXForCausalLM": NeoxBlock,
    "StableLmForCausalLM": StableLmBlock,
    OPT: OptBlock,
    BLOOM: BloomBlock,
    FALCON: FalconBlock,
    "DeepseekV2ForCausalLM": LatentBlock,
    "DeepseekV3ForCausalLM": LatentBlock,
}
#: Embeddings of their own.
EMBEDDINGS: dict[str, type[Embedding]] = {GPT2: Gpt2Embedding, OPT: OptEmbedding, BLOOM: BloomEmbedding}
#: Classes whose dropout in the residual stream is written down.
DROPPING = (GPT2, OPT, "GPTNeoXForCausalLM")
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
        "Gemma3ForCausalLM",
        "Phi3ForCausalLM",
        "MixtralForCausalLM",
        "Qwen2MoeForCausalLM",
        "Qwen3MoeForCausalLM",
    }
)


def pieces_of(decoder: Decoder, attention: str, workload: Workload, kernels: Kernels) -> tuple[Embedding, Block, Head]:
    """Embedding, block and head of ``decoder``, each on a tape of its own."""
    given = (decoder, attention, workload, kernels)
    embedding = EMBEDDINGS.get(decoder.causal_lm, Embedding)
    return embedding(*given), BLOCKS.get(decoder.causal_lm, Block)(*given), Head(*given)


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
    own, stable = decoder.causal_lm in BLOCKS, decoder.causal_lm == "StableLmForCausalLM"
    joins = own or decoder.qkv == FUSED
    # Tokens, positions, and the last norm with its bias.
    unusual = decoder.causal_lm == OPT and len(decoder.before) != 4
    falcon = decoder.causal_lm == FALCON and (decoder.qkv != GROUPED or decoder.qkv_bias or not decoder.rotary_size)
    latent = decoder.latent is not None
    frozen = not decoder.trained and (own or joins or decoder.experts is not None)
    reasons = (
        (frozen, f"parameters that are not trained of {decoder.causal_lm}"),
        (decoder.causal_lm not in CLASSES, f"the activations of {decoder.causal_lm}"),
        (not decoder.alike and decoder.leaf, f"layers without experts of {decoder.causal_lm}"),
        (own and attention == "eager" and decoder.causal_lm != BLOOM, f"eager attention of {decoder.causal_lm}"),
        (not joins and decoder.rotary_size != decoder.head_size, "heads that rotate in part"),
        (
            stable and (decoder.residual == PARALLEL or decoder.qk_norm),
            "parallel residuals or norms of heads of StableLM",
        ),
        (falcon, "Falcon's older architecture, with ALiBi, or with biases"),
        (latent and attention == "eager", f"eager attention of {decoder.causal_lm}"),
        (decoder.residual == AFTER_NORM, "BLOOM whose residual is taken behind its norms"),
        (unusual, "OPT with its norms behind attention and MLP, without their weights, or with a projected embedding"),
        (
            decoder.dropout and decoder.causal_lm not in DROPPING,
            f"dropout in the residual stream of {decoder.causal_lm}",
        ),
    )
    return next((what for holds, what in reasons if holds), None)
