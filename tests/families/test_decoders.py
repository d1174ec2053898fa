"""The programs of transformers' decoders: nothing is left behind, every parameter gets its gradient, sizes add up.

Legend: e bytes of an element, A = b·s·h, the residual stream's elements.
"""

from __future__ import annotations

from typing import Any

import pytest

from dsplan.activations import Programs, block_programs, not_covered, programs
from dsplan.decoders.covered import CLASSES
from dsplan.errors import InputError
from dsplan.families import FAMILIES
from dsplan.kernels import Kernels
from dsplan.model import ModelShape
from dsplan.modelfile import shape_from_config
from dsplan.tape import ALLOC, FREE, GRADIENT, Event
from dsplan.workload import Workload
from tests.families.shapes import SMALL
from tests.tapes import EXACT, levels, net

_BASE: dict[str, Any] = {
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 50,
    "max_position_embeddings": 128,
}
_WIDE = {**_BASE, "head_dim": 32}
_LATENT = {
    **_BASE, "num_key_value_heads": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48,
    "kv_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16,
}  # fmt: skip
#: A small decoder of every class that the formulas cover.
COVERED: dict[str, dict[str, Any]] = {
    "gpt2": {"model_type": "gpt2", "n_layer": 2, "n_embd": 64, "n_head": 4, "vocab_size": 50, "n_positions": 128},
    "gpt_neox": {**_BASE, "model_type": "gpt_neox", "num_attention_heads": 2},
    "gpt_neox, in sequence": {**_BASE, "model_type": "gpt_neox", "use_parallel_residual": False, "hidden_dropout": 0.1},
    "stablelm": {**_BASE, "model_type": "stablelm", "num_attention_heads": 2},
    "stablelm, beside": {
        **_BASE, "model_type": "stablelm", "num_attention_heads": 2, "use_parallel_residual": True,
    },
    "opt": {**_BASE, "model_type": "opt", "ffn_dim": 96},
    "opt, norms last": {
        **_BASE, "model_type": "opt", "ffn_dim": 96, "do_layer_norm_before": False, "word_embed_proj_dim": 32,
    },
    "opt, no last norm": {**_BASE, "model_type": "opt", "ffn_dim": 96, "_remove_final_layer_norm": True},
    "llama": {**_BASE, "model_type": "llama"},
    "llama with biases": {**_BASE, "model_type": "llama", "attention_bias": True, "mlp_bias": True},
    "llama, all heads": {**_BASE, "model_type": "llama", "num_key_value_heads": 4},
    "mistral": {**_BASE, "model_type": "mistral"},
    "qwen2": {**_BASE, "model_type": "qwen2"},
    "qwen3": {**_WIDE, "model_type": "qwen3"},
    "gemma": {**_WIDE, "model_type": "gemma"},
    "gemma2": {**_WIDE, "model_type": "gemma2"},
    "gemma3_text": {**_WIDE, "model_type": "gemma3_text"},
    "phi3": {**_BASE, "model_type": "phi3"},
    "mixtral": {**_BASE, "model_type": "mixtral", "num_local_experts": 4},
    "qwen3_moe": {**_BASE, "model_type": "qwen3_moe", "num_experts": 4, "num_experts_per_tok": 2},
    "qwen2_moe": {
        **_BASE, "model_type": "qwen2_moe", "num_experts": 4, "num_experts_per_tok": 2,
        "shared_expert_intermediate_size": 80,
    },
    "bloom": {"model_type": "bloom", "n_layer": 2, "hidden_size": 64, "n_head": 4, "vocab_size": 50},
    "bloom, behind its norms": {
        "model_type": "bloom", "n_layer": 2, "hidden_size": 64, "n_head": 4, "vocab_size": 50,
        "apply_residual_connection_post_layernorm": True,
    },
    "falcon": {
        **_BASE, "model_type": "falcon", "new_decoder_architecture": True, "num_attention_heads": 4, "num_kv_heads": 2,
    },
    "falcon, one norm": {
        **_BASE, "model_type": "falcon", "new_decoder_architecture": True, "num_attention_heads": 4, "num_kv_heads": 2,
        "num_ln_in_parallel_attn": 1,
    },
    "falcon, one head": {**_BASE, "model_type": "falcon", "num_attention_heads": 4},
    "falcon, all heads": {**_BASE, "model_type": "falcon", "multi_query": False, "bias": True},
    "falcon with ALiBi": {
        **_BASE, "model_type": "falcon", "multi_query": False, "bias": True, "alibi": True, "parallel_attn": False,
        "attention_dropout": 0.1,
    },
    "deepseek_v2": {**_LATENT, "model_type": "deepseek_v2", "q_lora_rank": None},
    "deepseek_v2 by groups": {
        **_LATENT, "model_type": "deepseek_v2", "q_lora_rank": 24, "topk_method": "group_limited_greedy", "n_group": 2,
        "topk_group": 1,
    },
    "deepseek_v3": {
        **_LATENT, "model_type": "deepseek_v3", "q_lora_rank": 24, "first_k_dense_replace": 0, "n_group": 2,
        "topk_group": 1,
    },
    "deepseek_v3, halves that rotate": {
        **_LATENT, "model_type": "deepseek_v3", "q_lora_rank": 24, "first_k_dense_replace": 0, "n_group": 2,
        "topk_group": 1, "rope_interleave": False, "norm_topk_prob": False,
    },
}  # fmt: skip


def shape(name: str, **changes: Any) -> ModelShape:
    return shape_from_config({**COVERED[name], **changes}, where=name, name=name)


def workload(**changes: Any) -> Workload:
    return Workload(**{"micro_batch_size": 2, "sequence_length": 32, **changes})


def everything(pieces: Programs, layers: int) -> list[Event]:
    """All events of a forward and a backward."""
    block = pieces.block
    return [
        *pieces.embedding.forward,
        *block.forward * layers,
        *pieces.head.forward,
        *pieces.head.backward,
        *block.backward * layers,
        *pieces.embedding.backward,
    ]


def test_every_covered_class_is_here() -> None:
    classes = {shape(name).decoder.causal_lm for name in COVERED}  # type: ignore[union-attr]
    assert classes == CLASSES


@pytest.mark.parametrize("checkpointing", ["none", "torch", "deepspeed"])
@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("name", COVERED)
def test_nothing_is_left_but_the_gradients(name: str, checkpointing: str, in_place: bool) -> None:
    kernels = Kernels(block_bytes=1, whole_segments=False, accumulates_in_place=in_place)
    for changes in ({}, {"attn_implementation": "eager"}):
        if changes and COVERED[name].get("alibi"):  # Falcon's: a dry run has it
            continue
        model = shape(name, tie_word_embeddings=False, **changes)
        pieces = programs(model, workload(activation_checkpointing=checkpointing), kernels)
        events = everything(pieces, model.num_layers)
        assert net(events) == 2 * model.num_parameters
        level = 0
        for kind, size, _ in events:
            level += size if kind == ALLOC else -size if kind == FREE else 0
            assert level >= 0


@pytest.mark.parametrize("name", COVERED)
def test_every_parameter_gets_its_gradient_once(name: str) -> None:
    model = shape(name)
    pieces = programs(model, workload(), EXACT)

    def gradients(events: tuple[Event, ...]) -> list[str]:
        return [str(what) for kind, _, what in events if kind == GRADIENT]

    assert sorted(gradients(pieces.block.backward)) == sorted(each.name for each in model.block_parameters)
    ends = [*gradients(pieces.head.backward), *gradients(pieces.embedding.backward)]
    assert sorted(ends) == sorted(each.name for each in (*model.embedding_parameters, *model.head_parameters))


@pytest.mark.parametrize("name", COVERED)
def test_a_checkpointed_block_keeps_its_output_in_place_of_its_input(name: str) -> None:
    model = shape(name)
    pieces = programs(model, workload(activation_checkpointing="torch"), EXACT)
    # The input that a checkpoint keeps is the output of the block before, which that one gave away.
    assert net(pieces.block.forward) == 2 * 2 * 32 * model.hidden_size


def test_a_llama_block_keeps_the_closed_formula() -> None:
    e, b, s, h, f, heads, groups, d = 2, 2, 32, 64, 96, 4, 2, 16
    kept = net(programs(shape("llama"), workload(), EXACT).block.forward)
    tokens = b * s
    norms = 2 * tokens * (4 * h + 2 * e * h + 4)  # x in fp32, scaled, the output, 1/rms
    attention = e * tokens * d * (2 * heads + 2 * groups) + 4 * b * heads * s + 16  # q, k, v, output; log-sum-exp
    mlp = 4 * e * tokens * f  # gate, its activation, up, product
    # The stream comes and goes: a block's output takes the place of its input, which no block saves.
    assert kept == norms + attention + mlp


def test_the_head_keeps_log_probabilities_in_fp32() -> None:
    model = shape("llama")
    pieces = programs(model, workload(), EXACT)
    tokens, v = 64, model.vocab_size
    stream = 2 * tokens * model.hidden_size
    freed = 2 * stream  # the last block's output, and the embedding, which its name kept
    norm = 4 * tokens * model.hidden_size + 2 * stream + 4 * tokens
    assert net(pieces.head.forward) == norm + 4 * tokens * v + 8 * tokens + 2 * 4 - freed
    # The highest: logits, their copy in fp32, and the log-probabilities.
    assert levels(pieces.head.forward)[1] >= tokens * v * (2 + 4 + 4)


def test_a_mixture_keeps_rows_of_all_experts_of_a_token() -> None:
    config = {**COVERED["mixtral"], "num_experts_per_tok": 1}
    one = net(programs(shape_from_config(config, where="x"), workload(), EXACT).block.forward)
    two = net(programs(shape("mixtral"), workload(), EXACT).block.forward)
    tokens, h, f = 64, 64, 96
    rows = tokens * 2 * (h + h + 2 * f + f + f)  # gathered, down; gate_up, activation, product
    routes = tokens * (8 + 4 + 8 + 8 + 4 + 8)  # indices, values, permutation, tokens, weights, inverse
    assert two - one == rows + routes


@pytest.mark.parametrize("name", sorted({*SMALL}))
def test_what_is_not_covered_says_so_and_offers_the_dry_run(name: str) -> None:
    model = shape_from_config(SMALL[name], where=name)
    why = not_covered(model, workload())
    if why is None:
        assert model.decoder is not None
        assert model.decoder.causal_lm in CLASSES
        programs(model, workload(), EXACT)
        return
    with pytest.raises(InputError) as caught:
        programs(model, workload(), EXACT)
    assert why in str(caught.value)
    assert "dsplan verify --device fake" in str(caught.value)


def test_gpt2_s_scores_in_fp32_are_for_the_dry_run() -> None:
    """reorder_and_upcast_attn is heard by eager attention only (models/gpt2, GPT2Attention.forward)."""
    upcast = {"reorder_and_upcast_attn": True}
    assert not_covered(shape("gpt2", **upcast), workload()) is None
    why = not_covered(shape("gpt2", attn_implementation="eager", **upcast), workload())
    assert why == "eager attention with reorder_and_upcast_attn"


@pytest.mark.parametrize(
    ("name", "activation"),
    [("llama", "gelu_fast"), ("gpt_neox", "quick_gelu"), ("phi3", "gelu_new"), ("mixtral", "gelu_new")],
)
def test_activations_of_several_operators_are_for_the_dry_run(name: str, activation: str) -> None:
    """FastGELUActivation and QuickGELUActivation are written out in transformers' activations.py, as NewGELU is."""
    model = shape(name, hidden_act=activation)
    assert model.decoder is not None
    assert not_covered(model, workload()) == f"{activation} in the MLP of {model.decoder.causal_lm}"
    assert not_covered(shape("llama", hidden_act="gelu_new"), workload()) is None


@pytest.mark.parametrize(
    ("name", "keys", "why"),
    [
        ("mixtral", {"output_router_logits": True}, "output_router_logits of MixtralForCausalLM"),
        ("mixtral", {"router_jitter_noise": 0.1}, "router_jitter_noise of MixtralForCausalLM"),
        ("qwen3_moe", {"output_router_logits": True}, "output_router_logits of Qwen3MoeForCausalLM"),
    ],
)
def test_what_routers_do_beside_routing_is_for_the_dry_run(name: str, keys: dict[str, Any], why: str) -> None:
    assert not_covered(shape(name, **keys), workload()) == why


def test_dropouts_of_the_embedding_are_their_own() -> None:
    """GPT-2's embd_pdrop; of GPT-NeoX hidden_dropout, whose input a name has until the blocks are done."""
    tokens, h = 64, 64
    kept = {p: net(programs(shape("gpt2", embd_pdrop=p), workload(), EXACT).embedding.forward) for p in (0.0, 0.1)}
    assert kept[0.1] - kept[0.0] == tokens * h  # a mask
    neox = {
        p: net(programs(shape("gpt_neox", hidden_dropout=p), workload(), EXACT).embedding.forward) for p in (0.0, 0.1)
    }
    assert neox[0.1] - neox[0.0] == tokens * h + 2 * tokens * h  # a mask, and the input


def test_a_window_shorter_than_the_sample_takes_a_mask_and_repeats_keys_and_values() -> None:
    model, inside = shape("mistral", sliding_window=16), workload(sequence_length=15)
    assert not_covered(model, workload()) is None
    assert programs(model, inside, EXACT) == programs(shape("mistral"), inside, EXACT)
    windowed, plain = (net(programs(each, workload(), EXACT).block.forward) for each in (model, shape("mistral")))
    e, b, s, heads, groups, d = 2, 2, 32, 4, 2, 16
    assert windowed - plain == 2 * e * b * s * d * (heads - groups) + e * b * s * s


def test_windows_of_some_layers_are_theirs_alone() -> None:
    model = shape("gemma3_text", sliding_window=16, num_hidden_layers=6)
    windowed, whole = block_programs(model, workload(), EXACT)[0], block_programs(model, workload(), EXACT)[5]
    e, b, s, heads, groups, d = 2, 2, 32, 4, 2, 32
    assert net(windowed.forward) - net(whole.forward) == 2 * e * b * s * d * (heads - groups) + e * b * s * s
    assert len(set(map(id, block_programs(model, workload(sequence_length=15), EXACT)))) == 1


def test_attention_without_a_kernel_keeps_its_probabilities_in_fp32() -> None:
    """Llama's two heads of keys in fp32, repeated for four queries; Falcon's one head in half precision, expanded."""
    b, s, heads, d = 2, 32, 4, 16
    tokens = b * s
    probabilities, copied = 4 * b * heads * s * s, 4 * tokens * heads * d
    all_heads = net(programs(shape("llama, all heads"), workload(precision="fp32"), EXACT).block.forward)
    kernel = 4 * tokens * heads * d * 3 + 4 * b * heads * s + 16  # q, k, v; log-sum-exp, padded to 32; the random state
    unfused = net(programs(shape("llama"), workload(precision="fp32"), EXACT).block.forward)
    context = 4 * tokens * heads * d  # that of a kernel is the input of o_proj; here it is copied first
    assert unfused - all_heads == probabilities + 3 * copied - kernel
    assert context == copied
    with pytest.raises(InputError, match="no fused kernel"):
        programs(shape("llama", attention_dropout=0.1), workload(precision="fp32"), EXACT)


def test_every_family_is_covered() -> None:
    assert {config["model_type"] for config in COVERED.values()} == set(FAMILIES)
