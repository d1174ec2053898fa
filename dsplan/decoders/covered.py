"""Which decoders the formulas cover, and their pieces."""

from __future__ import annotations

from dsplan.decoders.ends import Embedding, Head
from dsplan.decoders.gpt2 import Gpt2Block, Gpt2Embedding
from dsplan.decoders.neox import NeoxBlock, StableLmBlock
from dsplan.decoders.opt import OptBlock, OptEmbedding
from dsplan.decoders.pieces import GPT2, OPT, STREAM, Block, Piece
from dsplan.families import Decoder
from dsplan.families.decoder import FUSED, PARALLEL
from dsplan.kernels import Kernels
from dsplan.workload import Workload

__all__ = ["STREAM", "Embedding", "Head", "Piece", "pieces_of", "uncovered"]

#: Blocks of their own, by transformers' class; the other classes have Llama's.
BLOCKS: dict[str, type[Block]] = {
    GPT2: Gpt2Block,
    "GPTNeoXForCausalLM": NeoxBlock,
    "StableLmForCausalLM": StableLmBlock,
    OPT: OptBlock,
}
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
        "Qwen3MoeForCausalLM",
    }
)


def pieces_of(decoder: Decoder, attention: str, workload: Workload, kernels: Kernels) -> tuple[Embedding, Block, Head]:
    """Embedding, block and head of ``decoder``, each on a tape of its own."""
    given = (decoder, attention, workload, kernels)
    embedding = {GPT2: Gpt2Embedding, OPT: OptEmbedding}.get(decoder.causal_lm, Embedding)
    return embedding(*given), BLOCKS.get(decoder.causal_lm, Block)(*given), Head(*given)


def uncovered(decoder: Decoder, attention: str, length: int) -> str | None:
    """Why the formulas have no activations for ``decoder`` with samples of ``length`` tokens; None where they have."""
    shortest = min((window for window in decoder.windows if window is not None), default=None)
    windowed = attention != "eager" and shortest is not None and length >= shortest
    shared = decoder.experts is not None and decoder.experts.shared_size
    own, stable = decoder.causal_lm in BLOCKS, decoder.causal_lm == "StableLmForCausalLM"
    joins = own or decoder.qkv == FUSED
    # Tokens, positions, and the last norm with its bias.
    unusual = decoder.causal_lm == OPT and len(decoder.before) != 4
    reasons = (
        (not decoder.trained, "parameters that are not trained"),
        (decoder.causal_lm not in CLASSES, f"the activations of {decoder.causal_lm}"),
        (not decoder.alike, f"the layers of {decoder.causal_lm} that differ"),
        (own and attention == "eager", f"eager attention of {decoder.causal_lm}"),
        (not joins and decoder.rotary_size != decoder.head_size, "heads that rotate in part"),
        (
            stable and (decoder.residual == PARALLEL or decoder.qk_norm),
            "parallel residuals or norms of heads of StableLM",
        ),
        (unusual, "OPT with its norms behind attention and MLP, without their weights, or with a projected embedding"),
        (shared, "shared experts"),
        (
            decoder.dropout and decoder.causal_lm not in DROPPING,
            f"dropout in the residual stream of {decoder.causal_lm}",
        ),
        (windowed, f"sdpa with a window of {shortest} tokens and samples of {length}"),
    )
    return next((what for holds, what in reasons if holds), None)
