"""Reading: DeepSpeed's defaults and rules, and an error for everything that cannot be planned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dsplan.dsconfig.document import load_document
from dsplan.dsconfig.read import DsConfig, read_ds_config
from dsplan.dsconfig.removed import REMOVED_KEYS
from dsplan.errors import InputError
from dsplan.workload import CheckpointOptions
from dsplan.zero import OffloadOptimizer, OffloadParam, ZeroConfig

SMALLEST: dict[str, Any] = {"train_micro_batch_size_per_gpu": 1, "optimizer": {"type": "AdamW"}}


@pytest.fixture
def read(tmp_path: Path) -> Any:
    def _read(document: Any, *, world_size: int = 8, **overrides: Any) -> DsConfig:
        path = tmp_path / "mine.json"
        path.write_text(document if isinstance(document, str) else json.dumps(document), encoding="utf-8")
        return read_ds_config(path, world_size=world_size, **overrides)

    return _read


def zero(**values: Any) -> dict[str, Any]:
    return {**SMALLEST, "zero_optimization": values}


def test_defaults_are_deepspeeds(read: Any) -> None:
    config = read(SMALLEST)
    assert config.plan.name == "mine"
    assert config.plan.zero == ZeroConfig()
    assert config.plan.gradient_clipping == 1.0
    assert config.plan.workload.precision == "fp32"
    assert config.plan.workload.optimizer == "adamw"
    assert config.plan.workload.activation_checkpointing == "none"
    assert config.activation_checkpointing is None
    assert config.document == SMALLEST


def test_a_full_file(read: Any) -> None:
    config = read(
        {
            "train_batch_size": 64,
            "train_micro_batch_size_per_gpu": 4,
            "bf16": {"enabled": True},
            "fp16": {"enabled": False},
            "gradient_clipping": 0.5,
            "optimizer": {"type": "adam", "params": {"lr": 1e-4, "torch_adam": True}},
            "scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 10}},
            "activation_checkpointing": {"partition_activations": False, "number_checkpoints": 4},
            "zero_optimization": {
                "stage": 3,
                "reduce_bucket_size": 1e6,
                "prefetch_bucket_size": 7,
                "stage3_max_live_parameters": 5e8,
                "overlap_comm": None,
                "offload_optimizer": {"device": "cpu", "pin_memory": False, "ratio": 0.25},
                "offload_param": None,
                "gather_16bit_weights_on_model_save": True,
            },
        },
        sequence_length=77,
    )
    plan = config.plan
    assert config.train_batch_size == 64
    assert plan.workload.gradient_accumulation_steps == 2
    assert plan.workload.sequence_length == 77
    assert (plan.workload.precision, plan.workload.optimizer, plan.torch_adam) == ("bf16", "adam", True)
    assert plan.workload.activation_checkpointing == "deepspeed"
    assert plan.gradient_clipping == 0.5
    assert plan.zero == ZeroConfig(
        stage=3,
        reduce_bucket_size=1_000_000,
        stage3_prefetch_bucket_size=7,
        stage3_max_live_parameters=500_000_000,
        offload_optimizer=OffloadOptimizer(device="cpu", pin_memory=False, ratio=0.25),
    )
    assert isinstance(plan.zero.reduce_bucket_size, int)
    assert config.document["optimizer"]["params"]["lr"] == 1e-4
    assert config.document["scheduler"]["type"] == "WarmupLR"


def test_hjson_is_read_too(read: Any) -> None:
    text = '{\n  # a comment\n  train_micro_batch_size_per_gpu: 2\n  optimizer: {type: "SGD"},\n}'
    assert read(text).plan.workload.micro_batch_size == 2


def test_a_batch_size_that_is_whole_is_read_as_deepspeed_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text('{"train_micro_batch_size_per_gpu": 2.0, "train_batch_size": 2.5, "gradient_clipping": 1.0}')
    found = load_document(path)
    assert [type(value) for value in found.values()] == [int, float, float]
    assert type(load_document(path, "hf")["train_micro_batch_size_per_gpu"]) is float
    hjson = pytest.importorskip("hjson")
    assert type(hjson.loads(path.read_text())["train_micro_batch_size_per_gpu"]) is int


def test_a_comment_at_the_top_is_passed_over_as_deepspeed_does(read: Any) -> None:
    assert read({**SMALLEST, "_comment": "ours", "//": "and theirs"}).document["_comment"] == "ours"
    with pytest.raises(InputError, match=r"zero_optimization\._comment: unknown key"):
        read({**SMALLEST, "zero_optimization": {"stage": 1, "_comment": "refused here"}})


def test_accelerates_yaml_is_called_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "accelerate.yaml"
    path.write_text("distributed_type: DEEPSPEED\ndeepspeed_config:\n  deepspeed_config_file: run/ds.json\n")
    with pytest.raises(InputError, match=r"accelerate\.yaml: is YAML, .*; give the file that it names, run/ds\.json"):
        load_document(path)
    path.write_text("deepspeed_config:\n  zero_stage: 2\n")
    with pytest.raises(InputError, match="give a configuration in JSON"):
        load_document(path, "accelerate")
    path.write_text('{"train_batch_size": 8}')  # YAML's braces are JSON's
    assert load_document(path) == {"train_batch_size": 8}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1,\n "b": ]}', r"mine\.json: line 2, column 7: not JSON: Expecting value"),
        ("[1]", r"must hold an object {...}, not a list"),
        ("null", r"must hold an object {...}, not null"),
        ('{"train_batch_size": 1, "train_batch_size": 2}', "'train_batch_size' is given twice"),
        ('{"gradient_clipping": NaN}', "NaN is not a number"),
        ("\n", r"mine\.json: is empty"),
    ],
)
def test_not_a_document(read: Any, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(text)


@pytest.mark.parametrize("consumer", ["hf", "accelerate", "lightning"])
def test_frameworks_read_json_and_no_comments(tmp_path: Path, consumer: str) -> None:
    path = tmp_path / "mine.json"
    path.write_text('{\n  // a comment\n  "train_micro_batch_size_per_gpu": 2\n}')
    assert load_document(path) == {"train_micro_batch_size_per_gpu": 2}
    with pytest.raises(InputError, match=r"mine\.json: line 2, column 3: not JSON: .*DeepSpeed itself would read this"):
        load_document(path, consumer)
    path.write_text('{"train_micro_batch_size_per_gpu": 2}')
    assert load_document(path, consumer) == {"train_micro_batch_size_per_gpu": 2}


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="there is no /dev/zero")
def test_a_file_without_an_end_is_refused() -> None:
    with pytest.raises(InputError, match="/dev/zero: is too large for a configuration"):
        load_document(Path("/dev/zero"))


def test_missing_and_binary_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.json: cannot be read: No such file"):
        read_ds_config(tmp_path / "none.json", world_size=1)
    path = tmp_path / "binary.json"
    path.write_bytes(b"\xff\xfe{")
    with pytest.raises(InputError, match="is not UTF-8 text"):
        read_ds_config(path, world_size=1)


@pytest.mark.parametrize(
    ("given", "resolved"),
    [
        ({"train_batch_size": 48, "train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 3}, (48, 2, 3)),
        ({"train_batch_size": 48, "train_micro_batch_size_per_gpu": 2}, (48, 2, 3)),
        ({"train_batch_size": 48, "gradient_accumulation_steps": 3}, (48, 2, 3)),
        ({"train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 3}, (48, 2, 3)),
        ({"train_batch_size": 48}, (48, 6, 1)),
        ({"train_micro_batch_size_per_gpu": 2, "train_batch_size": None}, (16, 2, 1)),
    ],
)
def test_batch_sizes(read: Any, given: dict[str, Any], resolved: tuple[int, int, int]) -> None:
    config = read({"optimizer": {"type": "AdamW"}, **given})
    workload = config.plan.workload
    assert (config.train_batch_size, workload.micro_batch_size, workload.gradient_accumulation_steps) == resolved


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "train_batch_size, train_micro_batch_size_per_gpu: DeepSpeed needs at least one"),
        ({"gradient_accumulation_steps": 2}, "needs at least one"),
        ({"train_batch_size": 50}, "world size 8.*multiple of 8: e.g. 48 or 56"),
        ({"train_batch_size": 4}, "multiple of 8: e.g. 8"),
        (
            {"train_batch_size": 30, "train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 3},
            "train_batch_size 30, train_micro_batch_size_per_gpu 2, gradient_accumulation_steps 3, world size 8.*"
            "set train_batch_size to 48",
        ),
        ({"train_batch_size": 20, "train_micro_batch_size_per_gpu": 2}, "multiple of 16: e.g. 16 or 32"),
        ({"train_batch_size": 20, "gradient_accumulation_steps": 2}, "multiple of 16: e.g. 16 or 32"),
        ({"train_micro_batch_size_per_gpu": 0}, "whole number or null of at least 1"),
        ({"train_micro_batch_size_per_gpu": 2.5}, "train_micro_batch_size_per_gpu: 2.5"),
        ({"train_micro_batch_size_per_gpu": "2"}, 'train_micro_batch_size_per_gpu: "2"'),
    ],
)
def test_bad_batch_sizes(read: Any, given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read({"optimizer": {"type": "AdamW"}, **given})


def test_overrides(read: Any) -> None:
    document = {"train_batch_size": 64, "train_micro_batch_size_per_gpu": 4, "gradient_accumulation_steps": 2}
    config = read(document, micro_batch_size=1, optimizer="lion", activation_checkpointing="torch")
    assert config.train_batch_size == 16
    assert config.plan.workload.micro_batch_size == 1
    assert config.plan.workload.optimizer == "lion"
    assert config.plan.workload.activation_checkpointing == "torch"
    assert read({**document, **SMALLEST}, gradient_accumulation_steps=5).train_batch_size == 40
    with pytest.raises(InputError, match="train_micro_batch_size_per_gpu: 0"):
        read(document, micro_batch_size=0)
    with pytest.raises(InputError, match="world_size"):
        read(SMALLEST, world_size=0)


def test_no_optimizer_needs_the_scripts(read: Any) -> None:
    with pytest.raises(InputError, match="--optimizer"):
        read({"train_batch_size": 8})
    offload = {"stage": 2, "offload_optimizer": {"device": "cpu"}}
    document = {"train_batch_size": 8, "zero_force_ds_cpu_optimizer": False, "zero_optimization": offload}
    with pytest.raises(InputError, match=r"zero_force_ds_cpu_optimizer.*not modelled"):
        read(document, optimizer="adamw")


def test_the_scripts_adam_is_torchs_but_not_with_offload(read: Any) -> None:
    document: dict[str, Any] = {"train_batch_size": 8, "zero_optimization": {"stage": 2}}
    assert read(document, optimizer="AdamW").plan.torch_adam is True
    assert read(document, optimizer="lion").plan.torch_adam is False
    document["zero_optimization"]["offload_optimizer"] = {"device": "cpu"}
    assert read(document, optimizer="AdamW").plan.torch_adam is False


@pytest.mark.parametrize(
    ("optimizer", "device", "key"),
    [
        ("Adagrad", "none", "lr_decay"),
        ("Adagrad", "cpu", "amsgrad"),
        ("Lion", "none", "set_grad_none"),
        ("Lion", "cpu", "fp32_optimizer_states"),
        ("AdamW", "none", "set_grad_none"),
    ],
)
def test_arguments_belong_to_the_class_that_deepspeed_takes(read: Any, optimizer: str, device: str, key: str) -> None:
    value = {"lr_decay": 0.1, "amsgrad": False}.get(key, True)
    document: dict[str, Any] = {
        **zero(stage=2, offload_optimizer={"device": device}),
        "optimizer": {"type": optimizer, "params": {key: value}},
    }
    assert read(document).plan.workload.optimizer == optimizer.lower()
    document["zero_optimization"]["offload_optimizer"] = {"device": "none" if device == "cpu" else "cpu"}
    with pytest.raises(InputError, match=f"optimizer.params.{key}: {optimizer} does not take it"):
        read(document)


def test_old_names(read: Any) -> None:
    assert read(zero(stage=2, cpu_offload=True)).plan.zero.offload_optimizer == OffloadOptimizer(device="cpu")
    assert read(zero(stage=2, cpu_offload=False)).plan.zero == ZeroConfig(stage=2)
    assert read(zero(stage=3, cpu_offload_param=True)).plan.zero.offload_param == OffloadParam(device="cpu")
    assert read({**SMALLEST, "bfloat16": {"enabled": True}}).plan.workload.precision == "bf16"
    both = {**SMALLEST, "bfloat16": {"enabled": True}, "bf16": {"enabled": False}}
    assert read(both).plan.workload.precision == "fp32"
    true = {**SMALLEST, "zero_optimization": True, "allgather_size": 2e8}
    assert read(true).plan.zero == ZeroConfig(stage=1, allgather_bucket_size=200_000_000)
    assert read({**SMALLEST, "zero_optimization": False}).plan.zero == ZeroConfig()


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (zero(stage=2, cpu_offload=True, offload_optimizer={"device": "cpu"}), "refuses both together"),
        (zero(stage=3, prefetch_bucket_size=1, stage3_prefetch_bucket_size=1), "same key as stage3_prefetch"),
        (zero(stage=3, offload_param={"device": "nvme"}), "offload_param.nvme_path: is missing"),
        (zero(stage=2, offload_param={"device": "cpu"}), "needs ZeRO stage 3"),
        (zero(stage=0, offload_optimizer={"device": "cpu"}), "needs ZeRO stage 1, 2 or 3"),
        (zero(stage=4), r"zero_optimization.stage: 4 is not allowed; it must be one of 0, 1, 2, 3"),
        (zero(stage="2"), r'stage: "2" is not allowed'),
        (zero(reduce_bucket_size="5e8"), r'reduce_bucket_size: "5e8" is not allowed; it must be a whole number'),
        (zero(reduce_bucket_size=1.5), "reduce_bucket_size: 1.5"),
        (zero(stage3_prefetch_bucket=1), "unknown key; did you mean stage3_prefetch_bucket_size"),
        ({**SMALLEST, "gradient_clipp1ng": 1}, "gradient_clipp1ng: unknown key; did you mean gradient_clipping"),
        ({**SMALLEST, "reduce_bucket_size": 1}, "reduce_bucket_size: unknown key; it belongs in zero_optimization"),
        ({**SMALLEST, "fp16": {"enabled": "true"}}, r'fp16.enabled: "true" is not allowed; it must be true or false'),
        ({**SMALLEST, "fp16": {"enable": True}}, "fp16.enable: unknown key; did you mean enabled"),
        ({**SMALLEST, "bf16": {"enabled": 1}}, "bf16.enabled: 1 is not allowed"),
        ({**SMALLEST, "fp16": {"enabled": True}, "bf16": {"enabled": True}}, "refuses both together"),
        ({**SMALLEST, "data_types": {"param_dtype": "bf16"}}, "data_types.param_dtype: 'bf16'"),
        (
            {**SMALLEST, "gradient_clipping": -1},
            "gradient_clipping: -1 is not allowed; it must be a number of at least 0",
        ),
        (
            {**SMALLEST, "optimizer": {"type": "OneBitAdam"}},
            "DeepSpeed has no 'OneBitAdam' any more since 0.19.7; modelled",
        ),
        ({**SMALLEST, "optimizer": {"type": "FusedAdam"}}, "DeepSpeed has no 'FusedAdam'; did you mean Adam\\? "),
        ({**SMALLEST, "optimizer": {"type": "AdmaW"}}, "DeepSpeed has no 'AdmaW'; did you mean AdamW"),
        ({**SMALLEST, "optimizer": {"type": "sgd"}}, "must be spelled SGD"),
        ({**SMALLEST, "optimizer": {"params": {}}}, "optimizer.type: is missing"),
        ({**SMALLEST, "optimizer": {"type": "Lion", "params": {"eps": 1e-8}}}, "optimizer.params.eps: Lion does not"),
        ({**SMALLEST, "optimizer": {"type": "AdamW", "params": {"lr": "3e-4"}}}, r'params.lr: "3e-4" is not allowed'),
        ({**zero(stage=1), "optimizer": {"type": "SGD"}}, "zero_allow_untested_optimizer"),
        ({**SMALLEST, "scheduler": {"type": "WarmupCosine"}}, "scheduler.type"),
        ({**SMALLEST, "scheduler": {"type": "WarmupDecayLR", "params": {}}}, "params.total_num_steps: is missing"),
    ],
)
def test_what_deepspeed_refuses_or_would_misread(read: Any, document: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(document)


def test_auto_lists_the_keys(read: Any) -> None:
    document = {
        **zero(stage=2, reduce_bucket_size="auto"),
        "train_batch_size": "auto",
        "fp16": {"enabled": "auto"},
        "data_types": {"keep_in_fp32_modules": "auto"},
    }
    with pytest.raises(InputError, match=r"reduce_bucket_size, train_batch_size, fp16\.enabled: only"):
        read(document)


@pytest.mark.parametrize("key", REMOVED_KEYS)
def test_removed_keys(read: Any, key: str) -> None:
    document: dict[str, Any] = {**SMALLEST}
    section = document
    *parents, last = key.split(".")
    for parent in parents:
        section[parent] = dict(section.get(parent, {}))
        section = section[parent]
    section[last] = 1
    with pytest.raises(InputError, match=f"{key}: DeepSpeed 0.19.8 refuses it"):
        read(document)


_ADAM = {"type": "AdamW"}
BF16 = {"bf16": {"enabled": True}}
NOT_MODELLED: dict[str, dict[str, Any]] = {
    "data_types.grad_accum_dtype": {"data_types": {"grad_accum_dtype": "bf16"}},
    "data_types.buffer_dtype": {"data_types": {"buffer_dtype": "bf16"}},
    "data_types.keep_in_fp32_modules": {"data_types": {"keep_in_fp32_modules": ["ln"]}},
    "grad_accum_dtype at stage 0": {**BF16, "data_types": {"grad_accum_dtype": "fp32"}},
    "grad_accum_dtype with Adagrad": {
        **BF16,
        "data_types": {"grad_accum_dtype": "fp32"},
        "zero_optimization": {"stage": 1},
        "optimizer": {"type": "Adagrad"},
    },
    "torch_autocast without a dtype": {"torch_autocast": {"enabled": True}},
    "torch_autocast in bf16": {**BF16, "torch_autocast": {"enabled": True, "dtype": "bfloat16"}},
    "torch_autocast and lower_precision_safe_modules": {
        "torch_autocast": {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": ["torch.nn.Linear"]}
    },
    "torch_autocast and communication_data_type": {
        "torch_autocast": {"enabled": True, "dtype": "bfloat16"},
        "communication_data_type": "bf16",
    },
    "torch_autocast with torch's linear layer": {
        "torch_autocast": {"enabled": True, "dtype": "bfloat16"},
        "zero_optimization": {"stage": 3, "memory_efficient_linear": False},
    },
    "bf16.bf16_master_weights_and_grads": {"bf16": {"enabled": True, "bf16_master_weights_and_grads": True}},
    "bf16.bf16_optimizer_states": {"bfloat16": {"enabled": True, "bf16_optimizer_states": True}},
    "bf16.check_grad_overflow": {"bf16": {"enabled": True, "check_grad_overflow": False}},
    "fp16.fp16_master_weights_and_grads": {"fp16": {"enabled": True, "fp16_master_weights_and_grads": True}},
    "zero_hpz_partition_size": {
        "zero_optimization": {"stage": 3, "zero_hpz_partition_size": 2, "offload_param": {"device": "cpu"}}
    },
    "zero_quantized_weights": {"zero_optimization": {"stage": 3, "zero_quantized_weights": True}},
    "zero_quantized_gradients": {"zero_optimization": {"stage": 3, "zero_quantized_gradients": True}},
    "zenflow": {"zero_optimization": {"stage": 2, "zenflow": {}}},
    "super_offload": {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu", "super_offload": True}}},
    "pipeline_read": {"zero_optimization": {"stage": 3, "offload_optimizer": {"pipeline_read": True}}},
    "parameter_alignment": {"zero_optimization": {"stage": 2, "parameter_alignment": True}},
    "use_all_reduce_for_fetch_params": {
        "zero_optimization": {"stage": 3, "stage3_use_all_reduce_for_fetch_params": True}
    },
    "allgather_sequential": {"zero_optimization": {"stage": 3, "allgather_sequential": True}},
    "compute_grad_norm": {"zero_optimization": {"stage": 2, "compute_grad_norm": False}},
    "compile.deepcompile": {"compile": {"deepcompile": True}},
    "hybrid_engine.enabled": {"hybrid_engine": {"enabled": True}},
    "expert_parallel.enabled": {"expert_parallel": {"enabled": True}},
    "tensor_parallel.autotp_size": {"tensor_parallel": {"autotp_size": 2}},
    "sequence_parallel_size": {"sequence_parallel_size": 2},
    "data_efficiency.enabled": {"data_efficiency": {"enabled": True}},
    "autotuning.enabled": {"autotuning": {"enabled": True}},
    "pipeline": {"pipeline": {"stages": 2}},
    "weight_quantization": {"weight_quantization": {"enabled": True}},
    "managed_gradient_accumulation": {"managed_gradient_accumulation": False},
    "aio.use_gds": {"aio": {"use_gds": True}},
    "aio.intra_op_parallelism": {
        "aio": {"intra_op_parallelism": 4},
        "zero_optimization": {"stage": 3, "offload_param": {"device": "nvme", "nvme_path": "/d"}},
    },
    "Lamb": {"optimizer": {"type": "Lamb"}},
    "params.ns_method": {"optimizer": {"type": "Muon", "params": {"ns_method": "standard"}}},
    "RMSprop": {"optimizer": {"type": "RMSprop"}},
    "params.amsgrad": {"optimizer": {"type": "Adam", "params": {"amsgrad": True}}},
    "params.momentum": {"optimizer": {"type": "SGD", "params": {"momentum": 0.9}}},
    "params.fp32_optimizer_states": {"optimizer": {"type": "AdamW", "params": {"fp32_optimizer_states": False}}},
    "params.foreach": {"optimizer": {"type": "AdamW", "params": {"torch_adam": True, "foreach": False}}},
}


@pytest.mark.parametrize("key", NOT_MODELLED)
def test_what_is_not_modelled_stops(read: Any, key: str) -> None:
    with pytest.raises(InputError, match="not modelled yet") as caught:
        read({**SMALLEST, **NOT_MODELLED[key]})
    assert key.partition(" ")[0].casefold() in str(caught.value).casefold()


@pytest.mark.parametrize(("stage", "precision"), [(1, "bf16"), (1, "fp16"), (2, "bf16"), (2, "fp16"), (3, "fp16")])
def test_gradients_accumulated_and_reduced_in_fp32(read: Any, stage: int, precision: str) -> None:
    document = {
        **SMALLEST,
        precision: {"enabled": True},
        "data_types": {"grad_accum_dtype": "float32"},
        "communication_data_type": "FP32",
        "zero_optimization": {"stage": stage},
    }
    workload = read(document).plan.workload
    assert (workload.grad_accum_dtype, workload.communication_data_type) == ("fp32", "fp32")


def test_the_model_s_own_dtype_is_no_setting(read: Any) -> None:
    document = {**SMALLEST, **BF16, "data_types": {"grad_accum_dtype": "bf16"}, "communication_data_type": "bf16"}
    assert read(document).plan.workload == read({**SMALLEST, **BF16}).plan.workload


def test_a_dry_run_takes_gradients_that_are_not_modelled(read: Any) -> None:
    document = {**SMALLEST, "fp16": {"enabled": True}, "data_types": {"grad_accum_dtype": "bf16"}}
    found = read({**document, "zero_optimization": {"stage": 1}}, dry_run=True)
    assert found.not_modelled == ("data_types.grad_accum_dtype = 'bf16'",)
    assert found.plan.workload.grad_accum_dtype is None


def test_checkpoint_options_and_autocast_are_the_plan_s(read: Any) -> None:
    section = {
        "partition_activations": True,
        "contiguous_memory_optimization": True,
        "cpu_checkpointing": True,
        "number_checkpoints": 6,
    }
    document = {**SMALLEST, "activation_checkpointing": section}
    document["torch_autocast"] = {"enabled": True, "dtype": "torch.float16"}
    plan = read(document).plan
    assert plan.checkpointing == CheckpointOptions(**section)
    assert (plan.torch_autocast, plan.workload.precision) == ("fp16", "fp32")
    # Without buffers nobody counts them, and without DeepSpeed's checkpointing nobody reads the section.
    few = {"number_checkpoints": 6, "cpu_checkpointing": True}
    assert read({**SMALLEST, "activation_checkpointing": few}).plan.checkpointing.number_checkpoints is None
    assert read(document, activation_checkpointing="torch").plan.checkpointing == CheckpointOptions()


def test_a_dry_run_takes_autocast_that_is_not_modelled(read: Any) -> None:
    found = read({**SMALLEST, "torch_autocast": {"enabled": True}}, dry_run=True)
    assert found.not_modelled == ("torch_autocast.enabled = True",)
    assert found.plan.torch_autocast is None


def test_defaults_of_what_is_not_modelled_pass(read: Any) -> None:
    document = {
        **SMALLEST,
        "bf16": {"enabled": True, "check_grad_overflow": True},
        "data_types": {"grad_accum_dtype": "bf16", "param_dtype": "torch.bfloat16", "keep_in_fp32_modules": []},
        "communication_data_type": "bf16",
        "torch_autocast": {"enabled": False},
        "zero_optimization": {"stage": 3, "zero_hpz_partition_size": 1, "zenflow": None},
        "aio": {"intra_op_parallelism": 4},
        "compile": {"deepcompile": False},
        "pipeline": {},
        "steps_per_print": 100,
        "wandb": {"enabled": True},
    }
    assert read(document).plan.zero == ZeroConfig(stage=3)
