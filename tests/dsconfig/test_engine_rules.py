"""What DeepSpeed's engine refuses is refused before it is started, and nothing else is: the engine is asked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from dsplan.dsconfig.read import read_ds_config
from dsplan.errors import InputError

N = 4
CPU = {"offload_optimizer": {"device": "cpu"}}
FP32_ACCUMULATION = {"data_types": {"grad_accum_dtype": "fp32"}}
PREDIVIDED = {"gradient_predivide_factor": 2.0}
CONTIGUOUS = {"partition_activations": True, "contiguous_memory_optimization": True}


def document(stage: int, **zero: Any) -> dict[str, Any]:
    """AdamW in bf16, two samples a rank."""
    return {
        "train_micro_batch_size_per_gpu": 2,
        "gradient_accumulation_steps": 1,
        "bf16": {"enabled": True},
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-4}},
        "zero_optimization": {"stage": stage, "reduce_bucket_size": 100_000, **zero},
    }


def bf16(**more: bool) -> dict[str, Any]:
    return {"bf16": {"enabled": True, **more}}


def optimizer(name: str, **params: Any) -> dict[str, Any]:
    return {"optimizer": {"type": name, "params": {"lr": 1e-4, **params}}}


#: Name -> the document, and the key that the message names.
REFUSED: Mapping[str, tuple[dict[str, Any], str]] = {
    "hpz": (document(3, zero_hpz_partition_size=3), "zero_optimization.zero_hpz_partition_size: 3 does not divide"),
    "odd-gather": (document(2, allgather_bucket_size=4097), "zero_optimization.allgather_bucket_size: 4097 is odd"),
    "odd-gather-1": (document(1, allgather_bucket_size=1), "zero_optimization.allgather_bucket_size: 1 is odd"),
    "predivided-2": (document(2) | PREDIVIDED, "gradient_predivide_factor: 2.0 is not allowed; stage 2"),
    "predivided-3": (document(3) | PREDIVIDED, "gradient_predivide_factor: 2.0 is not allowed; stage 3"),
    "prescaled": (document(2) | {"prescale_gradients": True}, "prescale_gradients: stage 2"),
    "muon-3": (document(3) | optimizer("Muon"), "zero_optimization.reduce_scatter: Muon at stage 3"),
    "master": (document(2) | bf16(bf16_master_weights_and_grads=True), "bf16.bf16_master_weights_and_grads: without"),
    "states": (document(2) | bf16(bf16_optimizer_states=True), "bf16.bf16_optimizer_states: needs"),
    "mixed-0": (document(0) | FP32_ACCUMULATION, "data_types.grad_accum_dtype: stage 0"),
    "amsgrad": (document(2) | optimizer("AdamW", amsgrad=True), "optimizer.params.amsgrad: FusedAdam"),
    "no-count": (document(2) | {"activation_checkpointing": CONTIGUOUS}, "needs number_checkpoints"),
    "unparted": (
        document(2) | {"activation_checkpointing": {"contiguous_memory_optimization": True, "number_checkpoints": 2}},
        "needs partition_activations",
    ),
    "norm": (document(2, compute_grad_norm=False), "zero_optimization.compute_grad_norm: clipping needs"),
    "norm-offload": (
        document(2, compute_grad_norm=False, **CPU) | {"gradient_clipping": 0},
        "zero_optimization.compute_grad_norm: offload_optimizer needs",
    ),
    "norm-bf16": (
        document(1, compute_grad_norm=False) | {"gradient_clipping": 0} | FP32_ACCUMULATION,
        "zero_optimization.compute_grad_norm: stage 1 in bf16",
    ),
}
#: Their neighbours, which the engine takes.
TAKEN: Mapping[str, dict[str, Any]] = {
    "hpz": document(3, zero_hpz_partition_size=8),  # more than the ranks: all of them
    "odd-gather-3": document(3, allgather_bucket_size=4097),
    "odd-gather-1": document(1, allgather_bucket_size=4097) | FP32_ACCUMULATION,
    "predivided": document(2, reduce_scatter=False) | PREDIVIDED | {"prescale_gradients": True},
    "predivided-1": document(1) | PREDIVIDED,
    "summed": document(2) | PREDIVIDED | {"gradient_allreduce_op": "sum"},
    "muon-3": document(3, reduce_scatter=False) | optimizer("Muon"),
    "master": document(2, **CPU) | bf16(bf16_master_weights_and_grads=True),
    "states": document(2) | bf16(bf16_master_weights_and_grads=True, bf16_optimizer_states=True),
    "mixed-1": document(1) | FP32_ACCUMULATION,
    "amsgrad": document(2) | optimizer("AdamW", amsgrad=True, torch_adam=True),
    "contiguous": document(2) | {"activation_checkpointing": {**CONTIGUOUS, "number_checkpoints": 2}},
    "norm": document(2, compute_grad_norm=False) | {"gradient_clipping": 0},
}


def read(given: Mapping[str, Any], folder: Path) -> None:
    path = folder / "ds.json"
    path.write_text(json.dumps(given), encoding="utf-8")
    read_ds_config(path, world_size=N, dry_run=True)


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_names_the_key_and_says_what_to_write(name: str, tmp_path: Path) -> None:
    given, named = REFUSED[name]
    with pytest.raises(InputError, match="DeepSpeed's engine refuses it: ") as found:
        read(given, tmp_path)
    assert named in str(found.value)
    assert "; use " in str(found.value)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("name", TAKEN)
def test_what_the_engine_takes_is_taken(name: str, tmp_path: Path) -> None:
    read(TAKEN[name], tmp_path)


def test_a_model_that_does_not_checkpoint_needs_no_count(tmp_path: Path) -> None:
    path = tmp_path / "ds.json"
    path.write_text(json.dumps(REFUSED["no-count"][0]), encoding="utf-8")
    read_ds_config(path, world_size=N, dry_run=True, activation_checkpointing="none")


#: One of each rule, and what the engine says: that it is this which stops it.
SAID = {
    "hpz": "4 is not divisible by 3",
    "odd-gather": "allgather_bucket_size must be a multiple of nccl_start_alignment_factor, 2",
    "predivided-3": "gradient_predivide_factor != 1.0 is not yet supported with ZeRO-3",
    "muon-3": "Muon and reduce scatter cannot be used together",
    "master": "Master weights feature requires ZeRO-2 Offload",
    "mixed-0": "unsupported mix of model_dtype",
    "amsgrad": "FusedAdam does not support the AMSGrad variant",
    "no-count": "Must specify the number of layers",
    "norm-bf16": "compute_grad_norm=false does not support ZeRO Stage 1",
}
ASKED = ("hpz", "odd-gather-1", "predivided", "contiguous")


@pytest.mark.engine
def test_the_real_engine_says_the_same() -> None:
    pytest.importorskip("deepspeed")
    from tests.dry_runs import dry_runs
    from tests.test_dry_run_coverage import spec

    def asked(given: Mapping[str, Any]) -> Any:
        kind = "deepspeed" if "activation_checkpointing" in given else "none"
        return spec(given, steps=1, activation_checkpointing=kind)

    refused = {name: asked(REFUSED[name][0]) for name in SAID}
    taken = {f"taken {name}": asked(TAKEN[name]) for name in ASKED}
    found = dict(dry_runs({**refused, **taken}))
    assert {name: text for name, text in SAID.items() if text not in found[name]} == {}
    assert {name: found[name] for name in taken if isinstance(found[name], str)} == {}
