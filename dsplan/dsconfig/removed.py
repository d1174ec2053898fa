"""Keys that older DeepSpeed releases took and that 0.19.8 refuses.

Source: DeepSpeed ``runtime/config.py`` (``_REMOVED_TOP_LEVEL_CONFIG_KEYS``,
``_REMOVED_ZERO_CONFIG_KEYS``) and ``runtime/engine.py`` (``max_grad_norm``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dsplan.dsconfig import DEEPSPEED_VERSION
from dsplan.errors import InputError

#: Dotted key -> what to do instead.
REMOVED_KEYS = {
    "nebula": "remove it; checkpoints are written with torch.save",
    "compression_training": "remove it; the compression library is gone",
    "amp": "use fp16, bf16 or torch_autocast",
    "quantize_training": "remove it; Mixture-of-Quantization is gone",
    "sparse_gradients": "remove it; nn.Embedding(sparse=True) needs no key",
    "eigenvalue": "remove it; Mixture-of-Quantization is gone",
    "sparse_attention": "remove it; sparse attention is gone",
    "elasticity": "give train_micro_batch_size_per_gpu and gradient_accumulation_steps",
    "graph_harvesting": "remove it",
    "curriculum_learning": "use data_efficiency.data_sampling.curriculum_learning",
    "progressive_layer_drop": "remove it",
    "zero_optimization.mics_shard_size": "remove it; MiCS is gone",
    "zero_optimization.mics_hierarchical_params_gather": "remove it; MiCS is gone",
    "zero_optimization.zeropp_loco_param": "remove it; LoCo is gone",
    "optimizer.params.max_grad_norm": "use gradient_clipping at the top level",
}


def require_not_removed(document: Mapping[str, Any]) -> None:
    """Raise InputError for the first key of ``document`` that DeepSpeed no longer takes."""
    for key, instead in REMOVED_KEYS.items():
        section: Any = document
        for part in key.split("."):
            if not isinstance(section, Mapping) or part not in section:
                break
            section = section[part]
        else:
            raise InputError(f"{key}: DeepSpeed {DEEPSPEED_VERSION} refuses it; {instead}")
