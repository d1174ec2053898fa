"""The settings whose ladders are climbed on real GPUs: a case of ``cases.py``, a cap, the allocator's options."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Any

from tests.gpu.cases import CPU, CPU_BOTH, GELU, SDPA, SDPA_DROP, Case

#: Which settings nobody looks at until the verdict is done: every second of a shuffle with this seed.
SEED = 20261121
EXPANDABLE = "expandable_segments:True"
MODEL_2_7B = {"num_layers": 32, "hidden_size": 2560, "num_attention_heads": 32}
MODEL_7B = {"num_layers": 32, "hidden_size": 4096, "num_attention_heads": 32}
HALF = {"sequence_length": 512}
LONG = {"max_position_embeddings": 2048}
#: The models of 128 positions, with 512.
LONGER = {"max_position_embeddings": 512}


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


SETTINGS = (
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


def unseen() -> frozenset[str]:
    """Names of the settings whose results go to the file that stays closed."""
    names = sorted(setting.name for setting in SETTINGS)
    random.Random(SEED).shuffle(names)
    return frozenset(names[::2])
