"""What elementary attention keeps, beside what the kernel would.

Legend: e bytes of an element, A = b·s·h, n = b·a·s² scores.
"""

from __future__ import annotations

import pytest

from dsplan.activations import programs
from dsplan.decoders.eager import BATCHED
from dsplan.tape import ALLOC
from tests.families.test_decoders import shape, workload
from tests.tapes import EXACT, levels, net

E, S, H, HEADS = 2, 32, 64, 4


def kept(name: str, attention: str, *, samples: int = 2, checkpointing: str = "none", **changes: object) -> int:
    """Bytes that a block keeps for its backward pass."""
    model = shape(name, attn_implementation=attention, **changes)
    job = workload(micro_batch_size=samples, activation_checkpointing=checkpointing)
    return net(programs(model, job, EXACT).block.forward)


def log_sum_exp(samples: int, heads: int = HEADS) -> int:
    """And the random state, which a kernel keeps as well."""
    return 4 * samples * heads * S + 16


@pytest.mark.parametrize("samples", [1, 2])
def test_gpt2_keeps_probabilities_of_its_own_type_before_and_after_dropout(samples: int) -> None:
    """Queries, keys and values are copies for several samples, and else what c_attn made: 3·A either way."""
    n = samples * HEADS * S**2
    more = kept("gpt2", "eager", samples=samples) - kept("gpt2", "sdpa", samples=samples)
    assert more == 2 * E * n + n - log_sum_exp(samples)
    without = kept("gpt2", "eager", samples=samples, attn_pdrop=0.0) - kept("gpt2", "sdpa", samples=samples)
    assert without == E * n - log_sum_exp(samples)


def test_opt_keeps_them_in_fp32_and_cast() -> None:
    n = 2 * HEADS * S**2
    assert kept("opt", "eager") - kept("opt", "sdpa") == (4 + E) * n - log_sum_exp(2)


def test_heads_that_cat_has_made_are_not_copied_again() -> None:
    """GPT-NeoX: a kernel keeps the values' part of the whole projection, and its context before and after the copy."""
    heads = 2
    n, one = 2 * heads * S**2, E * 2 * S * H
    copied_values, whole, context = one, 3 * one, one
    more = kept("gpt_neox", "eager") - kept("gpt_neox", "sdpa")
    assert more == (4 + E) * n + copied_values - whole - context - log_sum_exp(2, heads)


def test_queries_are_copied_for_several_samples_and_viewed_of_one() -> None:
    """Llama with fewer keys than queries: repeat_kv copies keys and values in any case."""
    for samples in (1, 2):
        n, more_heads = samples * HEADS * S**2, E * samples * S * 16 * (HEADS - 2)
        more = kept("llama", "eager", samples=samples) - kept("llama", "sdpa", samples=samples)
        assert more == (4 + E) * n + 2 * more_heads - log_sum_exp(samples)
        model, job = shape("llama", attn_implementation="eager"), workload(micro_batch_size=samples)
        events = programs(model, job, EXACT).block.forward
        copies = [size for kind, size, what in events if kind == ALLOC and what is BATCHED]
        assert copies == ([] if samples == 1 else [E * samples * S * H])


def test_falcons_one_head_is_expanded_by_the_product_and_its_probabilities_kept_once() -> None:
    n, one = 2 * HEADS * S**2, E * 2 * S * H
    eager, unfused = kept("falcon, one head", "eager"), kept("falcon, one head", "sdpa")
    # In fp32: queries, keys and values for every head, and the probabilities; in half precision the same by half.
    assert unfused - eager == (4 * n + 3 * 2 * one) - (E * n + 3 * one)


def test_a_block_that_is_recomputed_holds_its_probabilities_until_it_ends() -> None:
    """Nothing is saved in the first run: the MLP runs beside the probabilities, which a name has."""
    job = workload(activation_checkpointing="torch", sequence_length=8)
    peaks = {
        attention: levels(
            programs(shape("opt", ffn_dim=4096, attn_implementation=attention), job, EXACT).block.forward
        )[1]
        for attention in ("eager", "sdpa")
    }
    assert peaks["eager"] - peaks["sdpa"] == E * 2 * HEADS * 8**2
