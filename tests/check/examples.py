"""For every rule a configuration that breaks it and one that does not."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Example:
    """``bad`` breaks the rule at ``line``; ``good`` does not; ``options`` are those of the run."""

    bad: str
    line: int
    good: str
    options: dict[str, Any] = field(default_factory=dict)
    name: str = "ds_config.json"


def _zero(inner: str, more: str = "") -> str:
    return f'{{"train_micro_batch_size_per_gpu": 1,{more}\n"zero_optimization": {{\n{inner}}}}}'


def _top(inner: str) -> str:
    return f'{{"train_micro_batch_size_per_gpu": 1,\n{inner}}}'


EXAMPLES: dict[str, list[Example]] = {
    "DS001": [Example(_top('"fp16": {'), 2, _top('"fp16": {"enabled": false}'))],
    "DS002": [Example(_top("# a comment\n"), 2, _top('"steps_per_print": 5'))],
    "DS003": [Example(_top('"bf16": {},\n"bf16": {}'), 3, _top('"bf16": {}'))],
    "DS101": [
        Example(_top('"gradient_cliping": 1.0'), 2, _top('"gradient_clipping": 1.0')),
        Example(_zero('"stages": 1'), 3, _zero('"stage": 1')),
        Example(_zero('"offload_optimizer":\n{"devise": "cpu"}'), 4, _zero('"offload_optimizer": {"device": "none"}')),
        Example(_top('"my_own_section": {}'), 2, _top('"dump_state": true')),
        Example(
            _top('"activation_checkpointing": {\n"cpu_checkpoint": true}'), 3, _top('"activation_checkpointing": {}')
        ),
        Example(_zero('"cpu_offload_params": true'), 3, _zero('"stage": 1')),
    ],
    "DS102": [
        Example(_zero('"gradient_clipping": 1.0'), 3, _top('"gradient_clipping": 1.0')),
        Example(_top('"stage3_max_live_parameters": 1'), 2, _zero('"stage": 3, "stage3_max_live_parameters": 1')),
        Example(_zero('"stage": 2,\n"max_in_cpu": 5'), 4, _zero('"stage": 2')),
    ],
    "DS103": [
        Example(_top('"amp": {"enabled": true}'), 2, _top('"fp16": {"enabled": true}')),
        Example(_top('"elasticity": {}'), 2, _top('"bf16": {"enabled": true}')),
        Example(_zero('"stage": 3,\n"mics_shard_size": 4'), 4, _zero('"stage": 3')),
        Example(_zero('"stage": 1,\n"legacy_stage1": true'), 4, _zero('"stage": 1, "legacy_stage1": false')),
        Example(
            _top('"optimizer": {"type": "Adam", "params": {\n"max_grad_norm": 1}}'), 3, _top('"gradient_clipping": 1')
        ),
    ],
    "DS104": [
        Example(_zero('"stage": 2,\n"cpu_offload": true'), 4, _zero('"stage": 2')),
        Example(_top('"zero_optimization": true'), 2, _zero('"stage": 1')),
        Example(_top('"bfloat16": {"enabled": true}'), 2, _top('"bf16": {"enabled": true}')),
    ],
    "DS105": [
        Example(
            _zero('"stage": 3,\n"prefetch_bucket_size": 1, "stage3_prefetch_bucket_size": 1'),
            4,
            _zero('"stage": 3, "prefetch_bucket_size": 1'),
        ),
        Example(
            _zero('"stage": 2, "offload_optimizer": {"device": "cpu"},\n"cpu_offload": true'),
            4,
            _zero('"stage": 2, "offload_optimizer": {"device": "cpu"}'),
        ),
    ],
    "DS201": [
        Example(_top('"fp16": {"enabled":\n"true"}'), 3, _top('"fp16": {"enabled": true}')),
        Example(_zero('"stage": 2,\n"reduce_bucket_size": "5e8"'), 4, _zero('"stage": 2, "reduce_bucket_size": 5e8')),
        Example(_top('"zero_optimization": []'), 2, _zero('"stage": 0')),
        Example(_top('"wall_clock_breakdown": "false"'), 2, _top('"wall_clock_breakdown": false')),
        Example(_zero('"stage": 2,\n"reduce_bucket_size": 0.5'), 4, _zero('"stage": 2, "reduce_bucket_size": 1.5e1')),
    ],
    "DS202": [
        Example(_zero('"stage": 4'), 3, _zero('"stage": 3')),
        Example(_zero('"stage": 1,\n"reduce_bucket_size": 0'), 4, _zero('"stage": 1, "reduce_bucket_size": 1')),
        Example(
            _zero('"stage": 3, "offload_param": {\n"device": "disk"}'), 4, _zero('"stage": 3, "offload_param": null')
        ),
        Example(
            _top('"optimizer": {"type": "Adam", "params": {\n"betas": [0.9, 1.5]}}'),
            3,
            _top('"optimizer": {"type": "Adam", "params": {"betas": [0.9, 0.95]}}'),
        ),
    ],
    "DS203": [
        Example(_top('"optimizer": {"params": {}}'), 2, _top('"optimizer": {"type": "Adam"}')),
        Example(_top('"scheduler": {"type": "WarmupLR"}'), 2, _top('"scheduler": {"type": "WarmupLR", "params": {}}')),
    ],
    "DS301": [
        Example('{"train_batch_size":\n30}', 2, '{"train_batch_size": 32}', {"world_size": 8}),
        Example(
            '{"train_micro_batch_size_per_gpu": 3, "gradient_accumulation_steps": 2,\n"train_batch_size": 32}',
            2,
            '{"train_micro_batch_size_per_gpu": 4, "gradient_accumulation_steps": 2, "train_batch_size": 32}',
        ),
    ],
    "DS302": [Example('\n{"gradient_accumulation_steps": 2}', 2, '{"train_batch_size": 2}')],
    "DS303": [
        Example(_top('"gradient_accumulation_steps": 2'), 2, _top('"dump_state": true'), {"consumer": "lightning"})
    ],
    "DS311": [
        Example(
            _top('"fp16": {"enabled": true}, "bf16":\n{"enabled": true}'),
            3,
            _top('"fp16": {"enabled": false}, "bf16": {"enabled": true}'),
        )
    ],
    "DS312": [
        Example(
            _top('"bf16": {"enabled": true}, "data_types":\n{"param_dtype": "fp16"}'),
            3,
            _top('"bf16": {"enabled": true}, "data_types": {"param_dtype": "bf16"}'),
        )
    ],
    "DS313": [
        Example(
            _top('"fp16": {"enabled": true,\n"fp16_master_weights_and_grads": true}'),
            3,
            _zero('"stage": 2', '"fp16": {"enabled": true, "fp16_master_weights_and_grads": true},'),
        )
    ],
    "DS314": [Example(_top('"fp16": {"loss_scale": 0}'), 2, _top('"fp16": {"enabled": true, "loss_scale": 0}'))],
    "DS401": [
        Example(
            _zero('"stage": 2,\n"offload_param": {"device": "cpu"}'),
            4,
            _zero('"stage": 3, "offload_param": {"device": "cpu"}'),
        ),
        Example(
            _zero('"stage": 1,\n"zero_hpz_partition_size": 8'), 4, _zero('"stage": 3, "zero_hpz_partition_size": 8')
        ),
        Example(
            _zero('"offload_optimizer": {"device": "cpu"}'),
            3,
            _zero('"stage": 1, "offload_optimizer": {"device": "cpu"}'),
        ),
        Example(
            _zero('"stage": 2, "offload_optimizer": {"nvme_path": "/n",\n"device": "nvme"}'),
            4,
            _zero('"stage": 3, "offload_optimizer": {"nvme_path": "/n", "device": "nvme"}'),
        ),
    ],
    "DS402": [
        Example(
            _zero('"stage": 2, "offload_optimizer": {"device": "cpu",\n"ratio": 0.5}'),
            4,
            _zero('"stage": 3, "offload_optimizer": {"device": "cpu", "ratio": 0.5}'),
        ),
        Example(
            _zero('"stage": 1,\n"compute_grad_norm": false'),
            4,
            _zero('"stage": 1, "compute_grad_norm": false', '"gradient_clipping": 0,'),
        ),
        Example(
            _zero('"stage": 3', '"gradient_allreduce_op":\n"sum",'),
            2,
            _zero('"stage": 2', '"gradient_allreduce_op": "sum",'),
        ),
    ],
    "DS501": [
        Example(_top('"optimizer": {"type":\n"AdamWW"}'), 3, _top('"optimizer": {"type": "adamw"}')),
        Example(_top('"optimizer": {"type": "sgd"}'), 2, _top('"optimizer": {"type": "SGD"}')),
        Example(_top('"optimizer": {"type": "OneBitAdam"}'), 2, _top('"optimizer": {"type": "Lion"}')),
    ],
    "DS502": [
        Example(
            _top('"optimizer": {"type": "AdamW", "params": {\n"learning_rate": 0.1}}'),
            3,
            _top('"optimizer": {"type": "AdamW", "params": {"lr": 0.1}}'),
        )
    ],
    "DS503": [
        Example(
            _zero('"stage": 1', '"optimizer": {"type": "SGD"},'),
            1,
            _zero('"stage": 1', '"optimizer": {"type": "SGD"}, "zero_allow_untested_optimizer": true,'),
        )
    ],
    "DS504": [
        Example(
            _zero(
                '"stage": 2, "offload_optimizer": {"device": "cpu"}',
                '"fp16": {"enabled": true}, "zero_allow_untested_optimizer": true,\n"optimizer": {"type": "Lamb"},',
            ),
            2,
            _zero('"stage": 2, "offload_optimizer": {"device": "cpu"}', '"optimizer": {"type": "AdamW"},'),
        )
    ],
    "DS505": [
        Example(
            _zero('"stage": 3', '"optimizer": {"type": "Muon"},'),
            2,
            _zero('"stage": 3, "reduce_scatter": false', '"optimizer": {"type": "Muon"},'),
        )
    ],
    "DS506": [
        Example(
            _top('"optimizer": {"type": "Lamb"}'),
            2,
            _top('"fp16": {"enabled": true}, "optimizer": {"type": "Lamb"}'),
        )
    ],
    "DS511": [
        Example(
            _top('"scheduler": {"params": {}, "type":\n"WarmupLr"}'),
            3,
            _top('"scheduler": {"params": {}, "type": "WarmupLR"}'),
        )
    ],
    "DS512": [
        Example(
            _top('"scheduler": {"type": "WarmupDecayLR",\n"params": {"warmup_num_steps": 5}}'),
            3,
            _top('"scheduler": {"type": "WarmupDecayLR", "params": {"total_num_steps": 5, "warmup_num_steps": 5}}'),
        )
    ],
    "DS513": [
        Example(
            _top('"scheduler": {"type": "WarmupDecayLR", "params": {"total_num_steps": 5,\n"warmup_num_steps": 6}}'),
            3,
            _top('"scheduler": {"type": "WarmupDecayLR", "params": {"total_num_steps": 5, "warmup_num_steps": 5}}'),
        )
    ],
    "DS601": [
        Example(_top('"bf16": {"enabled":\n"auto"}'), 3, _top('"bf16": {"enabled": true}')),
        Example(
            _top('"steps_per_print": "auto"'),
            2,
            _zero('"stage": 1', '"gradient_clipping": "auto",'),
            {"consumer": "accelerate"},
        ),
    ],
    "DS602": [Example(_top('"bf16": {"enabled":\n"auto"}'), 3, _top('"bf16": {"enabled": true}'), {"consumer": "hf"})],
    "DS701": [
        Example(
            _zero('"stage": 3, "offload_optimizer": {\n"device": "nvme"}'),
            4,
            _zero('"stage": 3, "offload_optimizer": {"device": "nvme", "nvme_path": "/local_nvme"}'),
        )
    ],
    "DS702": [
        Example(
            _zero('"stage": 2,\n"offload_optimizer": {"pin_memory": true}'),
            4,
            _zero('"stage": 2, "offload_optimizer": {"pin_memory": true, "device": "cpu"}'),
        )
    ],
    "DS801": [
        Example(
            _zero('"stage": 2,\n"reduce_bucket_size": 5e8'),
            4,
            _zero('"stage": 2, "reduce_bucket_size": 1e7'),
            {"model": "gpt-mini"},
        ),
        Example(
            _zero('"stage": 3,\n"reduce_bucket_size": 4e9'),
            4,
            _zero('"stage": 3, "reduce_bucket_size": 1e9'),
            {"model": "45B", "gpu": "a100-40gb"},
        ),
    ],
    "DS802": [
        Example(
            _zero('"stage": 3,\n"stage3_param_persistence_threshold": 1e9'),
            4,
            _zero('"stage": 3, "stage3_param_persistence_threshold": 1e4'),
            {"model": "gpt2"},
        )
    ],
    "DS811": [
        Example(
            _zero('"stage": 2', '"optimizer": {"type": "AdamW"},'),
            2,
            _zero('"stage": 2', '"optimizer": {"type": "AdamW"},'),
            {"model": "10B", "gpu": "a100-40gb", "good_model": "gpt2"},
        )
    ],
    "DS813": [
        Example(
            _zero('"stage": 3, "zero_quantized_weights": true', '"optimizer": {"type": "AdamW"},'),
            2,
            _zero('"stage": 3', '"optimizer": {"type": "AdamW"},'),
            {"model": "gpt2", "gpu": "h200"},
        )
    ],
    "DS901": [
        Example(_zero('"stage": 2'), 3, _zero('"stage": 3'), name="ds_config_zero3.json"),
        Example(
            "## Stage 3\n```json\n" + _zero('"stage": 2') + "\n```",
            5,
            "## Stages 2 and 3\n```json\n" + _zero('"stage": 2') + "\n```",
            name="tutorial.md",
        ),
    ],
    "DS911": [
        Example(
            "deepspeed_config:\n  zero_stages: 2\n", 2, "deepspeed_config:\n  zero_stage: 2\n", name="accelerate.yaml"
        )
    ],
    "DS912": [
        Example(
            "deepspeed_config:\n  deepspeed_config_file: ds_config.json\n  zero_stage: 2\n",
            3,
            "deepspeed_config:\n  deepspeed_config_file: ds_config.json\n  zero3_init_flag: true\n",
            name="accelerate.yaml",
        )
    ],
    "DS913": [
        Example(
            "deepspeed_config:\n  deepspeed_config_file: nowhere.json\n",
            2,
            "deepspeed_config:\n  zero_stage: 1\n",
            name="accelerate.yaml",
        )
    ],
}
