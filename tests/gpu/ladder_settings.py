"""The settings whose ladders are climbed on real GPUs: a case of ``cases.py``, a cap, the allocator's options."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from tests.gpu.cases import CPU, CPU_BOTH, GELU, HEADS_OF_100, SDPA, SDPA_DROP, Case
from tests.gpu.hf_cases import HfCase

#: Which settings nobody looks at until the verdict is done: every second of a shuffle with this seed.
SEED = 20261121
EXPANDABLE = "expandable_segments:True"
MODEL_2_7B = {"num_layers": 32, "hidden_size": 2560, "num_attention_heads": 32}
MODEL_7B = {"num_layers": 32, "hidden_size": 4096, "num_attention_heads": 32}
HALF = {"sequence_length": 512}
LONG = {"max_position_embeddings": 2048}
#: The models of 128 positions, with 512.
LONGER = {"max_position_embeddings": 512}
ODD = {"num_layers": 10, "hidden_size": 500, "num_attention_heads": 5, "tie_word_embeddings": True}
SMALL_LIVE = {
    "stage3_prefetch_bucket_size": 8_000_000,
    "stage3_max_live_parameters": 60_000_000,
    "stage3_max_reuse_distance": 30_000_000,
    "stage3_param_persistence_threshold": 2_000,
    "reduce_bucket_size": 20_000_000,
}
#: Steps of a rung: as many as the verdict replays where that is cheap.
ONE = {"gpus": 1, "steps": 8}
TWO = {"gpus": 2, "steps": 6}
FOUR = {"gpus": 4, "devices": 2, "steps": 5}


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One ladder: ``case`` at rising micro batches, with at most ``cap_gib`` for the allocator.

    ``allocator`` is PYTORCH_CUDA_ALLOC_CONF. ``heavy`` settings are started first: their rungs take longest.
    """

    case: Case
    cap_gib: float
    allocator: str = ""
    heavy: bool = False

    @property
    def name(self) -> str:
        return self.case.name

    @property
    def cap_bytes(self) -> int:
        return round(self.cap_gib * 2**30)

    def with_micro_batch(self, size: int) -> Case:
        return replace(self.case, micro_batch_size=size)


def _setting(
    name: str, model: str, cap_gib: float, *, allocator: str = "", heavy: bool = False, **rest: Any
) -> Setting:
    rest = {"gpus": 1, "tune": True, "steps": 5, **rest}
    return Setting(case=Case(name=name, model=model, **rest), cap_gib=cap_gib, allocator=allocator, heavy=heavy)


def _decoder(name: str, model: str, cap_gib: float, **rest: Any) -> Setting:
    """One of transformers' decoders."""
    return Setting(case=HfCase(name=name, model=model, **{"tune": True, **rest}), cap_gib=cap_gib)


FIRST = (
    # One rank, everything on the device.
    _setting("gpt2-z0-bf16", "gpt2", 24, stage=0),
    _setting("gpt2-z0-fp32-sdpa", "gpt2", 16, stage=0, precision="fp32", shape=SDPA_DROP),
    _setting("gpt2-z1-fp16", "gpt2", 16, stage=1, precision="fp16"),
    _setting("gpt2-z2-bf16-sdpa", "gpt2", 16, stage=2, shape={**SDPA, **GELU}),
    _setting("gpt2-z2-bf16-expandable", "gpt2", 16, stage=2, allocator=EXPANDABLE),
    _setting("gpt2-z3-bf16", "gpt2", 16, stage=3),
    _setting("gpt2-z3-fp16-ckpt", "gpt2", 14, stage=3, precision="fp16", checkpointing="torch"),
    _setting("gpt2-z2-gas3", "gpt2", 12, stage=2, gradient_accumulation_steps=3, shape=SDPA_DROP),
    _setting("gpt2-medium-z0-bf16-sdpa", "gpt2-medium", 24, stage=0, shape=SDPA),
    _setting("gpt2-medium-z1-bf16", "gpt2-medium", 24, stage=1),
    _setting("gpt2-medium-z2-fp16", "gpt2-medium", 20, stage=2, precision="fp16", shape=SDPA_DROP),
    _setting("gpt2-medium-z2-ckpt", "gpt2-medium", 16, stage=2, checkpointing="torch"),
    _setting("gpt2-medium-z3-bf16", "gpt2-medium", 24, stage=3, shape=SDPA),
    _setting("gpt2-medium-z1-fp32", "gpt2-medium", 24, stage=1, precision="fp32", **HALF),
    _setting("gpt2-large-z2-bf16-sdpa", "gpt2-large", 32, stage=2, shape=SDPA),
    _setting("gpt2-large-z2-ckpt", "gpt2-large", 24, stage=2, checkpointing="torch"),
    _setting("gpt2-large-z1-ckpt-sdpa", "gpt2-large", 24, stage=1, checkpointing="torch", shape=SDPA),
    _setting("gpt2-large-z3-bf16", "gpt2-large", 32, stage=3, **HALF),
    _setting("gpt2-large-z0-expandable", "gpt2-large", 32, stage=0, shape=SDPA, allocator=EXPANDABLE),
    _setting("gpt2-xl-z2-ckpt", "gpt2-xl", 40, stage=2, checkpointing="torch", shape=SDPA),
    _setting("gpt2-xl-z3-ckpt-expandable", "gpt2-xl", 40, stage=3, checkpointing="torch", allocator=EXPANDABLE),
    _setting("453M-z2-bf16", "453M", 16, stage=2, shape=LONGER, **HALF),
    _setting("1.7B-z1-bf16", "1.7B", 44, stage=1, shape=LONGER, **HALF),
    _setting("gpt2-z2-default-buckets", "gpt2", 16, stage=2, tune=False),
    # One rank, offload.
    _setting("gpt2-medium-z2-offload", "gpt2-medium", 14, stage=2, zero=CPU, shape=SDPA_DROP),
    _setting("gpt2-large-z2-offload-ckpt", "gpt2-large", 12, stage=2, zero=CPU, checkpointing="torch"),
    _setting("gpt2-large-z3-offload", "gpt2-large", 20, stage=3, zero=CPU, shape=SDPA),
    _setting("gpt2-xl-z3-offload-param-ckpt", "gpt2-xl", 12, stage=3, zero=CPU_BOTH, checkpointing="torch", shape=SDPA),
    _setting("1.7B-z2-offload", "1.7B", 20, stage=2, zero=CPU, shape=LONGER, heavy=True, **HALF),
    _setting("2.7B-z3-offload-ckpt", "gpt2-xl", 20, stage=3, zero=CPU, checkpointing="torch",
             shape={**SDPA, **MODEL_2_7B}, steps=4, heavy=True),
    _setting("7B-z3-offload-ckpt", "gpt2-xl", 32, stage=3, zero=CPU, checkpointing="torch", sequence_length=2048,
             shape={**SDPA, **MODEL_7B, **LONG}, steps=3, heavy=True),
    # Two ranks.
    _setting("gpt2-z0-fp16-n2", "gpt2", 16, gpus=2, stage=0, precision="fp16", shape=SDPA_DROP),
    _setting("gpt2-medium-z1-bf16-n2", "gpt2-medium", 20, gpus=2, stage=1, shape=SDPA_DROP),
    _setting("gpt2-medium-z2-overlap-n2", "gpt2-medium", 20, gpus=2, stage=2, zero={"overlap_comm": True}),
    _setting("gpt2-large-z2-bf16-n2", "gpt2-large", 24, gpus=2, stage=2, shape=SDPA),
    _setting("gpt2-large-z3-fp16-n2", "gpt2-large", 24, gpus=2, stage=3, precision="fp16", shape=SDPA),
    _setting("gpt2-xl-z3-bf16-n2", "gpt2-xl", 32, gpus=2, stage=3, shape=SDPA),
    _setting("gpt2-xl-z2-ckpt-n2", "gpt2-xl", 32, gpus=2, stage=2, checkpointing="torch", shape=SDPA),
    _setting("1.7B-z3-bf16-n2", "1.7B", 32, gpus=2, stage=3, shape=LONGER, **HALF),
    _setting("gpt2-large-z2-offload-n2", "gpt2-large", 16, gpus=2, stage=2, zero=CPU, shape=SDPA),
    _setting("gpt2-xl-z3-offload-ckpt-n2", "gpt2-xl", 12, gpus=2, stage=3, zero=CPU, checkpointing="torch",
             shape=SDPA, heavy=True),
    _setting("2.7B-z3-ckpt-n2", "gpt2-xl", 40, gpus=2, stage=3, checkpointing="torch", sequence_length=2048,
             shape={**SDPA, **MODEL_2_7B, **LONG}, steps=4),
    _setting("7B-z3-ckpt-n2", "gpt2-xl", 80, gpus=2, stage=3, checkpointing="torch", sequence_length=2048,
             shape={**SDPA, **MODEL_7B, **LONG}, steps=4, heavy=True),
    _setting("gpt2-z1-round-robin-n2", "gpt2", 14, gpus=2, stage=1, zero={"round_robin_gradients": True}),
)  # fmt: skip


#: Chosen once the verdict was done, and unlike FIRST: other models, lengths, precisions, optimizers, buckets and caps,
#: and four ranks. Those of four ranks are on two cards (``runner.sharing``).
SECOND = (
    # Four ranks, two on each of two cards.
    _setting("gpt2-z0-bf16-s512-n4", "gpt2", 12, **FOUR, stage=0, shape=SDPA_DROP, **HALF),
    _setting("gpt2-medium-z1-fp16-s256-n4", "gpt2-medium", 14, **FOUR, stage=1, precision="fp16", sequence_length=256),
    _setting("gpt2-z2-bf16-gelu-n4", "gpt2", 12, **FOUR, stage=2, shape={**SDPA, **GELU}),
    _setting("gpt2-z2-overlap-s768-n4", "gpt2", 14, **FOUR, stage=2, zero={"overlap_comm": True}, sequence_length=768),
    _setting("gpt2-medium-z3-ckpt-n4", "gpt2-medium", 12, **FOUR, stage=3, checkpointing="torch", shape=SDPA_DROP),
    _setting("gpt2-z3-fp16-n4", "gpt2", 13, **FOUR, stage=3, precision="fp16", shape=SDPA),
    _setting("gpt2-medium-z2-offload-n4", "gpt2-medium", 12, **FOUR, stage=2, zero=CPU, shape=SDPA),
    # Two ranks.
    _setting("gpt2-medium-z0-fp32-s768-n2", "gpt2-medium", 28, **TWO, stage=0, precision="fp32", shape=SDPA_DROP,
             sequence_length=768),
    _setting("gpt2-medium-z1-gas2-n2", "gpt2-medium", 18, **TWO, stage=1, gradient_accumulation_steps=2, shape=GELU,
             **HALF),
    _setting("gpt2-z2-fp16-buckets-n2", "gpt2", 13, **TWO, stage=2, precision="fp16",
             zero={"reduce_bucket_size": 5_000_000, "allgather_bucket_size": 8_000_000}),
    _setting("gpt2-large-z2-overlap-buckets-n2", "gpt2-large", 30, **TWO, stage=2, shape=SDPA,
             zero={"overlap_comm": True, "reduce_bucket_size": 30_000_000}),
    _setting("gpt2-medium-z3-thresholds-n2", "gpt2-medium", 18, **TWO, stage=3, tune=False, shape=SDPA_DROP,
             zero=SMALL_LIVE),
    _setting("gpt2-large-z3-ckpt-ds-n2", "gpt2-large", 16, **TWO, stage=3, checkpointing="deepspeed", shape=SDPA),
    _setting("gpt2-medium-z3-offload-param-n2", "gpt2-medium", 12, **TWO, stage=3, zero=CPU_BOTH, shape=SDPA_DROP),
    _setting("gpt2-medium-z2-lion-all-reduce-n2", "gpt2-medium", 22, **TWO, stage=2, optimizer="lion", shape=SDPA,
             zero={"reduce_scatter": False}),
    _setting("gpt2-large-z1-fp16-ckpt-n2", "gpt2-large", 20, **TWO, stage=1, precision="fp16", checkpointing="torch",
             shape=SDPA),
    _decoder("qwen2.5-0.5b-z1-n2", "qwen2.5-0.5b", 36, **TWO, stage=1),
    _decoder("llama-1b-z3-s2048-n2", "llama-3.2-1b", 48, **TWO, stage=3, sequence_length=2048),
    # One rank.
    _setting("gpt2-z1-sgd-s512", "gpt2", 20, **ONE, stage=1, optimizer="sgd", **HALF),
    _setting("gpt2-z0-fp16-s768", "gpt2", 18, **ONE, stage=0, precision="fp16", sequence_length=768),
    _setting("gpt2-medium-z0-ckpt", "gpt2-medium", 20, **ONE, stage=0, checkpointing="torch"),
    _setting("gpt2-medium-z2-bf16-gelu", "gpt2-medium", 40, **ONE, stage=2, shape={**SDPA_DROP, **GELU}),
    _setting("gpt2-z3-fp32", "gpt2", 18, **ONE, stage=3, precision="fp32"),
    _setting("gpt2-medium-z3-fp16-default", "gpt2-medium", 30, **ONE, stage=3, precision="fp16", tune=False,
             shape=SDPA),
    _setting("gpt2-large-z0-bf16-s512", "gpt2-large", 36, **ONE, stage=0, shape=SDPA_DROP, **HALF),
    _setting("gpt2-large-z3-ckpt", "gpt2-large", 26, **ONE, stage=3, checkpointing="torch"),
    _setting("odd-z2-s777", "gpt2", 16, **ONE, stage=2, shape=ODD, sequence_length=777),
    _setting("heads-of-100-z3-s1000", "gpt2", 14, **ONE, stage=3, shape=HEADS_OF_100, sequence_length=1000),
    _setting("gpt2-z2-adagrad", "gpt2", 22, **ONE, stage=2, optimizer="adagrad", shape=SDPA),
    _setting("gpt2-medium-z2-torch-adam-gas2", "gpt2-medium", 24, **ONE, stage=2, torch_adam=True, shape=SDPA_DROP,
             gradient_accumulation_steps=2),
    _setting("gpt2-medium-z2-offload-gas2-s512", "gpt2-medium", 16, **ONE, stage=2, zero=CPU, shape=GELU,
             gradient_accumulation_steps=2, **HALF),
    _setting("gpt2-medium-z3-offload-fp16-ckpt", "gpt2-medium", 14, **ONE, stage=3, zero=CPU, precision="fp16",
             checkpointing="torch", shape=SDPA),
    _setting("gpt2-z3-offload-param", "gpt2", 12, **ONE, stage=3, zero=CPU_BOTH),
    _setting("453M-z1-s256", "453M", 24, **ONE, stage=1, shape=LONGER, sequence_length=256),
    _setting("gpt2-medium-z2-expandable", "gpt2-medium", 22, **ONE, stage=2, allocator=EXPANDABLE),
    _setting("gpt2-xl-z2-s512", "gpt2-xl", 60, **ONE, stage=2, shape=SDPA, **HALF),
    _setting("2.7B-z3-s512", "gpt2-xl", 80, gpus=1, steps=5, stage=3, shape={**SDPA, **MODEL_2_7B}, heavy=True, **HALF),
    _decoder("llama-1b-z2-ckpt-s2048", "llama-3.2-1b", 40, **ONE, stage=2, checkpointing="torch", sequence_length=2048),
    _decoder("qwen3-0.6b-z2-s1024", "qwen3-0.6b", 32, **ONE, stage=2),
)  # fmt: skip

SETS = {"first": FIRST, "second": SECOND}
SETTINGS = (*FIRST, *SECOND)


def unseen(settings: Sequence[Setting]) -> frozenset[str]:
    """Names of those of ``settings`` whose results go to the file that stays closed."""
    names = sorted(setting.name for setting in settings)
    random.Random(SEED).shuffle(names)
    return frozenset(names[::2])
