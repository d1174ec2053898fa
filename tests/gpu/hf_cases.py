"""Decoders of transformers' that are recorded on real GPUs: ``python -m tests.gpu.sweep HF OUTPUT.json``.

The shapes are those that are published (``source``), with fewer layers where the whole model would take minutes to
build; predicted peaks are below 120 GiB.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from dsplan.catalogue import preset
from dsplan.model import ModelShape
from dsplan.modelfile import changed, shape_from_config
from dsplan.zero import OffloadOptimizer
from tests.gpu.cases import Case

_CPU = {"offload_optimizer": OffloadOptimizer(device="cpu")}


@dataclass(frozen=True, kw_only=True)
class HfCase(Case):
    """A case whose model is one of the catalogue's decoders; ``keys`` of its configuration are replaced.

    ``shape`` are fields of ModelShape (``num_layers``, ``attention``, ``tie_word_embeddings``), as for a minGPT.
    """

    keys: dict[str, Any] = field(default_factory=dict)

    def model_shape(self) -> ModelShape:
        found = preset(self.model)
        if self.keys:
            found = shape_from_config({**found.to_config(), **self.keys}, where=self.name, name=found.name)
        return replace(changed(found, self.shape), name=found.name) if self.shape else found


#: A Mixtral of 1.3B parameters: the published block at a quarter of its width.
_SMALL_MIXTRAL = {
    "hidden_size": 1024,
    "intermediate_size": 3584,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "num_hidden_layers": 12,
}

HF = [
    HfCase(
        name="llama-1b-z0-s2048-n1", gpus=1, model="llama-3.2-1b", stage=0, micro_batch_size=2, sequence_length=2048
    ),
    HfCase(
        name="llama-1b-z2-s4096-ckpt-n1",
        gpus=1,
        model="llama-3.2-1b",
        stage=2,
        tune=True,
        checkpointing="torch",
        micro_batch_size=2,
        sequence_length=4096,
    ),
    HfCase(
        name="llama-1b-z3-s2048-n1",
        gpus=1,
        model="llama-3.2-1b",
        stage=3,
        tune=True,
        micro_batch_size=2,
        sequence_length=2048,
    ),
    HfCase(
        name="llama-1b-z1-eager-s2048-n1",
        gpus=1,
        model="llama-3.2-1b",
        stage=1,
        shape={"attention": "eager"},
        micro_batch_size=1,
        sequence_length=2048,
    ),
    HfCase(
        name="llama-8b-8l-z2-s4096-n1",
        gpus=1,
        model="llama-3.1-8b",
        stage=2,
        tune=True,
        shape={"num_layers": 8},
        micro_batch_size=1,
        sequence_length=4096,
    ),
    HfCase(
        name="llama-8b-8l-z3-s2048-ckpt-n1",
        gpus=1,
        model="llama-3.1-8b",
        stage=3,
        tune=True,
        shape={"num_layers": 8},
        checkpointing="torch",
        micro_batch_size=4,
        sequence_length=2048,
    ),
    HfCase(
        name="qwen2.5-0.5b-z0-s2048-n1",
        gpus=1,
        model="qwen2.5-0.5b",
        stage=0,
        micro_batch_size=4,
        sequence_length=2048,
    ),
    HfCase(
        name="qwen3-0.6b-z2-s4096-n1",
        gpus=1,
        model="qwen3-0.6b",
        stage=2,
        tune=True,
        micro_batch_size=2,
        sequence_length=4096,
    ),
    HfCase(
        name="gemma-2b-z2-s2048-n1",
        gpus=1,
        model="gemma-2b",
        stage=2,
        tune=True,
        micro_batch_size=2,
        sequence_length=2048,
    ),
    HfCase(
        name="gemma-3-1b-z0-ckpt-s2048-n1",
        gpus=1,
        model="gemma-3-1b",
        stage=0,
        checkpointing="torch",
        keys={"sliding_window": 4096},
        micro_batch_size=2,
        sequence_length=2048,
    ),
    HfCase(
        name="mixtral-small-z2-s2048-n1",
        gpus=1,
        model="mixtral-8x7b",
        stage=2,
        tune=True,
        keys=_SMALL_MIXTRAL,
        micro_batch_size=2,
        sequence_length=2048,
    ),
    HfCase(
        name="llama-1b-z2-offload-s2048-n1",
        gpus=1,
        model="llama-3.2-1b",
        stage=2,
        tune=True,
        zero=_CPU,
        micro_batch_size=2,
        sequence_length=2048,
    ),
    HfCase(
        name="llama-1b-z3-s4096-n2",
        gpus=2,
        model="llama-3.2-1b",
        stage=3,
        tune=True,
        micro_batch_size=1,
        sequence_length=4096,
    ),
    HfCase(
        name="llama-8b-z3-ckpt-s2048-n2",
        gpus=2,
        model="llama-3.1-8b",
        stage=3,
        tune=True,
        checkpointing="torch",
        micro_batch_size=1,
        sequence_length=2048,
    ),
    HfCase(
        name="llama-8b-16l-z2-ckpt-s4096-n2",
        gpus=2,
        model="llama-3.1-8b",
        stage=2,
        tune=True,
        shape={"num_layers": 16},
        checkpointing="torch",
        micro_batch_size=1,
        sequence_length=4096,
    ),
    HfCase(
        name="qwen2.5-0.5b-z1-s2048-n2",
        gpus=2,
        model="qwen2.5-0.5b",
        stage=1,
        micro_batch_size=4,
        sequence_length=2048,
    ),
]
