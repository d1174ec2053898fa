"""For every rule configurations that break it, each beside one that does not.

``@`` stands in a bad example before what the rule finds: the line begins anew there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_HERE = "@"


@dataclass(frozen=True)
class Example:
    """A text that breaks a rule, one that does not, and the options of the run."""

    marked: str
    good: str
    name: str
    options: dict[str, Any]

    @property
    def bad(self) -> str:
        return self.marked.replace(_HERE, "\n")

    @property
    def line(self) -> int:
        """Where the rule finds something in :attr:`bad`."""
        return self.marked[: self.marked.index(_HERE)].count("\n") + 2


def _text(bad: str, good: str, name: str = "ds_config.json", **options: Any) -> Example:
    return Example(marked=bad, good=good, name=name, options=options)


def _keys(bad: str, good: str, **options: Any) -> Example:
    """Two configurations that have these keys."""
    begin = '{"train_micro_batch_size_per_gpu": 1, '
    return _text(f"{begin}{bad}}}", f"{begin}{good}}}", **options)


def _zero(bad: str, good: str, **options: Any) -> Example:
    """Two configurations whose zero_optimization has these keys."""
    return _keys(f'"zero_optimization": {{{bad}}}', f'"zero_optimization": {{{good}}}', **options)


def _optimizer(bad: str, good: str, zero: str = '"stage": 0', **options: Any) -> Example:
    """Two configurations that differ in their optimizer, or in what stands beside it."""
    rest = f', "zero_optimization": {{{zero}}}'
    return _keys(f'"optimizer": {{"type": {bad}{rest}', f'"optimizer": {{"type": {good}{rest}', **options)


def _scheduler(bad: str, good: str) -> Example:
    return _keys(f'"scheduler": {{"type": {bad}}}', f'"scheduler": {{"type": {good}}}')


def _accelerate(bad: str, good: str) -> Example:
    return _text(f"deepspeed_config:{bad}\n", f"deepspeed_config:\n  {good}\n", name="accelerate.yaml")


_CPU = '"offload_optimizer": {"device": "cpu"}'
_ADAMW = '"optimizer": {"type": "AdamW"}'

EXAMPLES: dict[str, list[Example]] = {
    "DS001": [_keys('@"fp16": {', '"fp16": {"enabled": false}')],
    "DS002": [_keys("@# a comment\n", '"steps_per_print": 5')],
    "DS003": [_keys('"bf16": {}, @"bf16": {}', '"bf16": {}')],
    "DS101": [
        _keys('@"gradient_cliping": 1.0', '"gradient_clipping": 1.0'),
        _zero('@"stages": 1', '"stage": 1'),
        _zero('"offload_optimizer": {@"devise": "cpu"}', '"offload_optimizer": {"device": "none"}'),
        _keys('@"my_own_section": {}', '"dump_state": true'),
        _keys('"activation_checkpointing": {@"cpu_checkpoint": true}', '"activation_checkpointing": {}'),
        _zero('@"cpu_offload_params": true', '"stage": 1'),
        _keys('"aio": {@"thread_count": 2}', '"aio": {"intra_op_parallelism": 2}'),
        _keys('"data_efficiency": {@"enable": true}', '"data_efficiency": {"enabled": true}'),
    ],
    "DS102": [
        _zero('@"gradient_clipping": 1.0', '"stage": 1'),
        _zero('"stage": 2, @"fp16": {"enabled": true}', '"stage": 2'),
        _keys('@"stage3_max_live_parameters": 1', '"zero_optimization": {"stage": 3, "max_live_parameters": 1}'),
        _zero('"stage": 2, @"max_in_cpu": 5', '"stage": 2'),
    ],
    "DS103": [
        _keys('@"amp": {"enabled": true}', '"fp16": {"enabled": true}'),
        _keys('@"elasticity": {}', '"bf16": {"enabled": true}'),
        _keys('@"sparse_gradients": true', '"dump_state": true'),
        _keys('"compile": {@"backend": "inductor"}', '"compile": {"deepcompile": false}'),
        _zero('"stage": 3, @"mics_shard_size": 4', '"stage": 3'),
        _zero('"stage": 1, @"legacy_stage1": true', '"stage": 1, "legacy_stage1": false'),
        _optimizer('"Adam", "params": {@"max_grad_norm": 1}}', '"Adam"}, "gradient_clipping": 1'),
    ],
    "DS104": [
        _zero('"stage": 2, @"cpu_offload": true', '"stage": 2'),
        _keys('"zero_optimization":@true', '"zero_optimization": {"stage": 1}'),
        _keys('@"bfloat16": {"enabled": true}', '"bf16": {"enabled": true}'),
        _zero('"stage": 3, @"elastic_checkpoint": true', '"stage": 3, "elastic_checkpoint": false'),
    ],
    "DS105": [
        _zero(
            '"stage": 3, @"prefetch_bucket_size": 1, "stage3_prefetch_bucket_size": 1',
            '"stage": 3, "prefetch_bucket_size": 1',
        ),
        _zero(f'"stage": 2, {_CPU}, @"cpu_offload": true', f'"stage": 2, {_CPU}'),
    ],
    "DS201": [
        _keys('"fp16": {"enabled":@"true"}', '"fp16": {"enabled": true}'),
        _zero('"stage": 2, "reduce_bucket_size":@"5e8"', '"stage": 2, "reduce_bucket_size": 5e8'),
        _keys('"zero_optimization":@[]', '"zero_optimization": {"stage": 0}'),
        _keys('"wall_clock_breakdown":@"false"', '"wall_clock_breakdown": false'),
        _keys('"zero_allow_untested_optimizer":@1', '"zero_allow_untested_optimizer": true'),
        _zero('"stage": 2, "reduce_bucket_size":@0.5', '"stage": 2, "reduce_bucket_size": 1.5e1'),
        _keys(
            '"zero_optimization": {"stage":@[1, 2]}',
            '"zero_optimization": {"stage": [1, 2]}, "autotuning": {"enabled": true}',
        ),
    ],
    "DS202": [
        _zero('"stage":@4', '"stage": 3'),
        _zero('"stage": 1, "reduce_bucket_size":@0', '"stage": 1, "reduce_bucket_size": 1'),
        _zero('"stage": 3, "offload_param": {"device":@"disk"}', '"stage": 3, "offload_param": null'),
        _optimizer('"Adam", "params": {@"betas": [0.9, 1.5]}}', '"Adam", "params": {"betas": [0.9, 0.95]}}'),
    ],
    "DS203": [
        _keys('@"optimizer": {"params": {}}', '"optimizer": {"type": "Adam"}'),
        _keys('@"scheduler": {"type": "WarmupLR"}', '"scheduler": {"type": "WarmupLR", "params": {}}'),
    ],
    "DS301": [
        _text('{"train_batch_size":@30}', '{"train_batch_size": 32}', world_size=8),
        _keys(
            '"gradient_accumulation_steps": 3, "train_batch_size":@32',
            '"gradient_accumulation_steps": 4, "train_batch_size": 32',
        ),
    ],
    "DS302": [_text('@{"gradient_accumulation_steps": 2}', '{"train_batch_size": 2}')],
    "DS303": [_keys('@"gradient_accumulation_steps": 2', '"dump_state": true', consumer="lightning")],
    "DS311": [
        _keys(
            '"fp16": {"enabled": true}, "bf16": {"enabled":@true}',
            '"fp16": {"enabled": false}, "bf16": {"enabled": true}',
        )
    ],
    "DS312": [
        _keys(
            '"bf16": {"enabled": true}, "data_types": {"param_dtype":@"fp16"}',
            '"bf16": {"enabled": true}, "data_types": {"param_dtype": "bf16"}',
        )
    ],
    "DS313": [
        _keys(
            '"fp16": {"enabled": true, @"fp16_master_weights_and_grads": true}',
            '"fp16": {"enabled": true, "fp16_master_weights_and_grads": true}, "zero_optimization": {"stage": 2}',
        )
    ],
    "DS314": [_keys('@"fp16": {"loss_scale": 0}', '"fp16": {"enabled": true, "loss_scale": 0}')],
    "DS321": [
        _text('@{"train_batch_size": 1}', '{"train_batch_size": 1, "gradient_clipping": 0}'),
        _text('@{"train_batch_size": 1}', '{"train_batch_size": 1, "gradient_clipping": "auto"}', consumer="hf"),
    ],
    "DS401": [
        _zero('"stage": 2, @"offload_param": {"device": "cpu"}', '"stage": 3, "offload_param": {"device": "cpu"}'),
        _zero('"stage": 1, @"zero_hpz_partition_size": 8', '"stage": 3, "zero_hpz_partition_size": 8'),
        _zero(f"@{_CPU}", f'"stage": 1, {_CPU}'),
        _zero(
            '"stage": 2, "offload_optimizer": {"nvme_path": "/n", "device":@"nvme"}',
            '"stage": 3, "offload_optimizer": {"nvme_path": "/n", "device": "nvme"}',
        ),
    ],
    "DS402": [
        _zero('"stage": 2, "allgather_bucket_size":@500000001', '"stage": 2, "allgather_bucket_size": 500000000'),
        _keys(
            '"zero_optimization": {"stage": 1, "allgather_bucket_size":@7}, "bf16": {"enabled": true}',
            '"zero_optimization": {"stage": 1, "allgather_bucket_size": 7}, "bf16": {"enabled": true}, '
            '"data_types": {"grad_accum_dtype": "fp32"}',
        ),
        _zero('"stage": 3, "zero_hpz_partition_size":@3', '"stage": 3, "zero_hpz_partition_size": 4', world_size=8),
        _zero(
            '"stage": 2, "offload_optimizer": {"device": "cpu", "ratio":@0.5}',
            '"stage": 3, "offload_optimizer": {"device": "cpu", "ratio": 0.5}',
        ),
        _keys(
            '"zero_optimization": {"stage": 1, "compute_grad_norm":@false}',
            '"zero_optimization": {"stage": 1, "compute_grad_norm": false}, "gradient_clipping": 0',
        ),
        _keys(
            '"zero_optimization": {"stage": 3}, "gradient_allreduce_op":@"sum"',
            '"zero_optimization": {"stage": 2}, "gradient_allreduce_op": "sum"',
        ),
        _keys(
            '"compile": {"deepcompile": true}, "gradient_allreduce_op":@"sum"',
            '"compile": {"deepcompile": true}, "gradient_allreduce_op": "mean"',
        ),
    ],
    "DS501": [
        _optimizer('@"AdamWW"}', '"adamw"}'),
        _optimizer('@"sgd"}', '"SGD"}'),
        _optimizer('@"OneBitAdam"}', '"Lion"}'),
    ],
    "DS502": [
        _optimizer('"AdamW", "params": {@"learning_rate": 0.1}}', '"AdamW", "params": {"lr": 0.1}}'),
        _optimizer('"Muon", "params": {@"muon_beta": 0.1}}', '"Muon", "params": {"momentum": 0.1}}'),
    ],
    "DS503": [_optimizer('@"SGD"}', '"SGD"}, "zero_allow_untested_optimizer": true', zero='"stage": 1')],
    "DS504": [
        _optimizer(
            '@"Lamb"}, "zero_allow_untested_optimizer": true',
            '"AdamW"}, "zero_allow_untested_optimizer": true',
            zero=f'"stage": 2, {_CPU}',
        ),
        _optimizer(
            '@"RMSprop"}, "zero_allow_untested_optimizer": true',
            '"Adagrad"}, "zero_allow_untested_optimizer": true',
            zero=f'"stage": 2, {_CPU}',
        ),
        _keys(
            f'"zero_optimization": {{"stage": 2, {_CPU}}}, @"zero_force_ds_cpu_optimizer": false',
            f'"zero_optimization": {{"stage": 2, {_CPU}}}, {_ADAMW}',
        ),
        _keys(
            f'"zero_optimization": {{"stage": 2, @{_CPU}}}',
            f'"zero_optimization": {{"stage": 2, {_CPU}}}, {_ADAMW}',
        ),
        _keys('@"zero_force_ds_cpu_optimizer": true', '"dump_state": true'),
    ],
    "DS505": [
        _keys(
            '"optimizer": {"type": "Muon"}, @"zero_optimization": {"stage": 3}',
            '"optimizer": {"type": "Muon"}, "zero_optimization": {"stage": 3, "reduce_scatter": false}',
        )
    ],
    "DS506": [
        _optimizer('"Lamb"}, "fp16": {"enabled": true, "loss_scale":@128}', '"Lamb"}, "fp16": {"enabled": true}'),
        _optimizer('"Lamb"}, "fp16": {"enabled": false, "loss_scale":@128}', '"Lamb"}'),
    ],
    "DS511": [_scheduler('@"WarmupLr", "params": {}', '"WarmupLR", "params": {}')],
    "DS512": [
        _scheduler(
            '"WarmupDecayLR", @"params": {"warmup_num_steps": 5}',
            '"WarmupDecayLR", "params": {"total_num_steps": 5, "warmup_num_steps": 5}',
        )
    ],
    "DS513": [
        _scheduler(
            '"WarmupDecayLR", "params": {"total_num_steps": 5, "warmup_num_steps":@6}',
            '"WarmupDecayLR", "params": {"total_num_steps": 5, "warmup_num_steps": 5}',
        )
    ],
    "DS601": [
        _keys('"bf16": {"enabled":@"auto"}', '"bf16": {"enabled": true}'),
        _keys(
            '"steps_per_print":@"auto"', '"gradient_clipping": "auto", "zero_optimization": {}', consumer="accelerate"
        ),
    ],
    "DS602": [
        _keys('"bf16": {"enabled":@"auto"}', '"bf16": {"enabled": true}', consumer="hf"),
        _text(
            '{"train_micro_batch_size_per_gpu":@"auto", "autotuning": {"enabled": true}}',
            '{"train_micro_batch_size_per_gpu": 4, "autotuning": {"enabled": true}}',
        ),
    ],
    "DS701": [
        _zero(
            '"stage": 3, "offload_optimizer": {@"device": "nvme"}',
            '"stage": 3, "offload_optimizer": {"device": "nvme", "nvme_path": "/local_nvme"}',
        )
    ],
    "DS702": [
        _zero(
            '"stage": 2, @"offload_optimizer": {"pin_memory": true}',
            '"stage": 2, "offload_optimizer": {"pin_memory": true, "device": "cpu"}',
        )
    ],
    "DS801": [
        _zero('"stage": 2, @"reduce_bucket_size": 5e8', '"stage": 2, "reduce_bucket_size": 1e7', model="gpt-mini"),
        _zero(
            '"stage": 3, @"reduce_bucket_size": 4e9',
            '"stage": 3, "reduce_bucket_size": 1e9',
            model="45B",
            gpu="a100-40gb",
        ),
    ],
    "DS802": [
        _zero(
            '"stage": 3, "stage3_param_persistence_threshold":@1e9',
            '"stage": 3, "stage3_param_persistence_threshold": 1e4',
            model="gpt2",
        )
    ],
    "DS803": [
        _zero('"stage": 2, "overlap_comm":@true', '"stage": 2, "overlap_comm": false'),
        _zero(
            '"stage": 2, "reduce_bucket_size": 5e7, "overlap_comm":@true',
            '"stage": 2, "reduce_bucket_size": 1e6, "overlap_comm": true',
            model="gpt2-xl",
            notes=True,
        ),
        _zero(
            '"stage": 3, "stage3_prefetch_bucket_size":@5e7',
            '"stage": 3, "stage3_prefetch_bucket_size": 0',
            model="gpt2-xl",
            world_size=8,
            notes=True,
        ),
        _zero(
            '"stage": 3, "max_live_parameters":@1e9',
            '"stage": 3, "max_live_parameters": 0',
            model="gpt2-xl",
            world_size=8,
            notes=True,
        ),
        _zero(
            '"stage": 3, "zero_hpz_partition_size":@8',
            '"stage": 3, "zero_hpz_partition_size": 1',
            model="gpt2-xl",
        ),
        _zero(
            '"stage": 2, "offload_optimizer": {"device": "cpu", "pin_memory":@true}',
            '"stage": 2, "offload_optimizer": {"device": "cpu", "pin_memory": false}',
            model="gpt2-xl",
            notes=True,
        ),
    ],
    "DS811": [
        _keys(
            f'{_ADAMW}, @"zero_optimization": {{"stage": 2}}',
            f'{_ADAMW}, "zero_optimization": {{"stage": 2}}',
            model="10B",
            gpu="a100-40gb",
            good_model="gpt2",
        )
    ],
    "DS813": [
        _keys(
            f'{_ADAMW}, @"zero_optimization": {{"stage": 3, "zero_quantized_weights": true}}',
            f'{_ADAMW}, "zero_optimization": {{"stage": 3}}',
            model="gpt2",
            gpu="h200",
        )
    ],
    "DS901": [
        _text(
            '{"train_batch_size": 1, "zero_optimization": {"stage":@2}}',
            '{"train_batch_size": 1, "zero_optimization": {"stage": 3}}',
            name="ds_config_zero3.json",
        ),
        _text(
            '## Stage 3\n```json\n{"train_batch_size": 1, "zero_optimization": {"stage":@2}}\n```',
            '## Stages 2 and 3\n```json\n{"train_batch_size": 1, "zero_optimization": {"stage": 2}}\n```',
            name="tutorial.md",
        ),
        _text(
            '# ZeRO-2\n```yml\n{"zero_optimization": {"stage":@3}}\n```',
            '# ZeRO-2\n```yml\n{"zero_optimization": {"stage": 2}}\n```',
            name="tutorial.md",
        ),
    ],
    "DS911": [_accelerate("@  zero_stages: 2", "zero_stage: 2")],
    "DS912": [
        _accelerate(
            "\n  deepspeed_config_file: ds_config.json@  zero_stage: 2",
            "deepspeed_config_file: ds_config.json\n  zero3_init_flag: true",
        ),
        _accelerate(
            "\n  deepspeed_config_file: ds_config.json\n@mixed_precision: bf16",
            "deepspeed_config_file: ds_config.json\nmixed_precision: null",
        ),
    ],
    "DS913": [_accelerate("@  deepspeed_config_file: nowhere.json", "zero_stage: 1")],
}
