"""What the dry run covers beyond the records of real runs: the bytes that must be there, computed by hand.

The model has Ψ = 167,680 parameters: L(12h² + 13h) + 2Vh + Th + 2h with L = 2, h = 64, V = 512, T = 32. Blocks of
the allocator are multiples of 512 bytes.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from dsplan.catalogue import accelerator
from dsplan.events.read import read_events
from runner.spec import RunSpec
from tests.dry_runs import ROOT, dry_runs

pytestmark = pytest.mark.engine

L, H, V, T, HEADS, B, N = 2, 64, 512, 32, 4, 2, 4
MODEL = {"n_layer": L, "n_head": HEADS, "n_embd": H, "vocab_size": V, "block_size": T, "dropout": 0.1}
PSI = L * (12 * H * H + 13 * H) + 2 * V * H + T * H + 2 * H
A = B * T * H  # elements of one activation
BF16 = {"bf16": {"enabled": True}}
FP32_ACCUMULATION = {"data_types": {"grad_accum_dtype": "fp32"}}
AUTOCAST = {"torch_autocast": {"enabled": True, "dtype": "bfloat16"}}
ALIGNED = 1024 // 4  # fp32 elements that a transfer to a drive is aligned to (runtime/swap_tensor/utils.py)


def zero(stage: int, **more: Any) -> dict[str, Any]:
    section: dict[str, Any] = {"stage": stage, "reduce_bucket_size": 100_000, "allgather_bucket_size": 200_000}
    if stage == 3:
        section |= {"stage3_prefetch_bucket_size": 30_000, "stage3_param_persistence_threshold": 100}
    return {"zero_optimization": {**section, **more}}


def spec(
    *parts: Mapping[str, Any], target: str = "h200", gpus: int = N, model: Mapping[str, Any] | None = None, **more: Any
) -> RunSpec:
    """Two steps of the last rank but what ``parts`` of a DeepSpeed configuration and ``more`` say."""
    document: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": B,
        "gradient_accumulation_steps": 1,
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-4}},
    }
    for part in parts:
        document |= part
    document["train_batch_size"] = B * document["gradient_accumulation_steps"] * gpus
    options = {"device": "fake", "gpus": gpus, "rank": gpus - 1, "steps": 2, "target": asdict(accelerator(target))}
    shape = {**MODEL, **(model or {})}
    return RunSpec(model=shape, ds_config=document, sequence_length=T, **{**options, **more})


def nvme(count: int) -> dict[str, Any]:
    return zero(
        3, sub_group_size=10**9, offload_optimizer={"device": "nvme", "nvme_path": "/not/there", "buffer_count": count}
    )


def partitioned(**options: bool | int) -> dict[str, Any]:
    return {"activation_checkpointing": {"partition_activations": True, **options}}


MUON = {"optimizer": {"type": "Muon", "params": {"lr": 1e-4}}}
SPECS = {
    "plain": spec(BF16, zero(2)),
    "offloaded": spec(BF16, zero(3, offload_optimizer={"device": "cpu", "pin_memory": True})),
    "accumulating": spec(BF16, zero(2), {"gradient_accumulation_steps": 2}),
    "bf16-optimizer": spec(BF16, zero(1), FP32_ACCUMULATION),
    "compact": spec(BF16, zero(2), FP32_ACCUMULATION),
    "bf16-states": spec(
        {"bf16": {"enabled": True, "bf16_master_weights_and_grads": True, "bf16_optimizer_states": True}}, zero(2)
    ),
    "muon": spec(BF16, zero(2), MUON, gpus=1),
    "muon-of-four": spec(BF16, zero(2), MUON),
    "muon-3": spec(BF16, zero(3, reduce_scatter=False), MUON),
    "hpz": spec(BF16, zero(3, zero_hpz_partition_size=2), gpus=8),
    "own-linear": spec(BF16, zero(3)),
    "torch-linear": spec(BF16, zero(3, memory_efficient_linear=False)),
    "whole": spec(BF16, zero(3), zero_init=False),
    "quantised": spec(BF16, zero(3, zero_quantized_weights=True)),
    "nvme-4": spec(BF16, nvme(4)),
    "nvme-6": spec(BF16, nvme(6)),
    "fp32": spec(zero(2)),
    "autocast": spec(AUTOCAST, zero(2)),
    "autocast-deeper": spec(AUTOCAST, zero(2), model={"n_layer": L + 1}),
    "autocast-fp16": spec({"torch_autocast": {"enabled": True, "dtype": "float16"}}, zero(0)),
    "checkpointed": spec(BF16, zero(2), activation_checkpointing="torch"),
    "reentrant": spec(BF16, zero(2), activation_checkpointing="torch-reentrant"),
    "on-host": spec(BF16, zero(2), partitioned(cpu_checkpointing=True), activation_checkpointing="deepspeed"),
    "contiguous": spec(
        BF16,
        zero(2),
        partitioned(contiguous_memory_optimization=True, number_checkpoints=L),
        activation_checkpointing="deepspeed",
    ),
    "t4": spec({"fp16": {"enabled": True, "loss_scale": 128}}, zero(2), target="t4", model={"attention": "sdpa"}),
    "bf16-on-t4": spec(BF16, zero(2), target="t4"),
    "lamb": spec(BF16, zero(1), {"optimizer": {"type": "Lamb", "params": {"lr": 1e-4}}}),
    "out-of-memory": spec(BF16, zero(2), memory_cap_bytes=38 << 20),  # the second workspace, in the backward pass
    "quantised-gradients": spec(BF16, zero(3, zero_quantized_gradients=True)),
}
#: Whose events are written.
FOLLOWED = ("plain", "offloaded", "out-of-memory")
STOPPED = {
    "bf16-on-t4": "Type bf16 is not supported on your device",
    "lamb": "the dry run does not cover DeepSpeed's operator 'fused_lamb'",
    "quantised-gradients": "the dry run does not cover 'swizzle_quant' of DeepSpeed's operator 'quantizer'",
    "out-of-memory": "for which the allocator wanted 32.0 MiB more of the device",
}


@pytest.fixture(scope="module")
def events_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("events")


@pytest.fixture(scope="module")
def runs(events_folder: Path) -> dict[str, Any]:
    followed = {name: replace(SPECS[name], events=str(events_folder / name)) for name in FOLLOWED}
    return dict(dry_runs({**SPECS, **followed}))


def phase(run: Any, name: str, what: str = "level_bytes", step: int = -1) -> int:
    assert isinstance(run, dict), run
    return int((run["init"] if name == "init" else run["steps"][step]["phases"][name])[what])


def term(run: Any, name: str, where: str, cause: str = "", step: str = "1") -> int:
    """Bytes live at the peak of a phase that a line of the file ``where`` asked for."""
    assert isinstance(run, dict), run
    (peak,) = (peak for peak in run["dry_run"]["peaks"] if (peak["step"], peak["phase"]) == (step, name))
    return sum(term["bytes"] for term in peak["terms"] if where in term["where"] and cause in term["cause"])


def block(size: int) -> int:
    """What the allocator counts for a tensor of this many bytes."""
    return -(-size // 512) * 512


def matrices() -> list[int]:
    """Elements of a block's matrices."""
    return [3 * H * H, H * H, 4 * H * H, 4 * H * H]


def parameters() -> list[int]:
    """Elements of every parameter of the model."""
    vectors = [3 * H, H, 4 * H, H, H, H, H, H]  # biases, and both norms
    return [V * H, T * H, *L * (matrices() + vectors), H, H, V * H]


@pytest.mark.parametrize("name", FOLLOWED[:2])
def test_the_events_add_up_to_every_level_of_the_record(name: str, runs: dict[str, Any], events_folder: Path) -> None:
    live: dict[int, dict[str, Any]] = {}
    level = peak = 0
    ends = {}
    for event in read_events(events_folder / name):
        if event["action"] == "alloc":
            live[event["event"]] = event
            level += event["size_bytes"] if event["place"] == "device" else 0
        elif event["action"] == "free":
            level -= live.pop(event["of"])["size_bytes"] if event["place"] == "device" else 0
        elif event["action"] == "phase_begin":
            peak = level
        else:
            ends[event["step"], event["phase"]] = (event["allocated_bytes"], event["reserved_bytes"], peak)
        peak = max(peak, level)
        assert event["allocated_bytes"] == level
    run = runs[name]
    phases = {("init", "init"): run["init"]}
    for index, step in enumerate(run["steps"]):
        phases |= {(str(index), phase): memory for phase, memory in step["phases"].items()}
    assert ends == {
        key: (memory["level_bytes"], memory["reserved_bytes"], memory["peak_bytes"]) for key, memory in phases.items()
    }


def test_events_know_dtype_module_stream_and_line(runs: dict[str, Any], events_folder: Path) -> None:
    assert isinstance(runs["offloaded"], dict), runs["offloaded"]
    taken = [event for event in read_events(events_folder / "offloaded") if event["action"] == "alloc"]
    assert {event["place"] for event in taken} == {"device", "pageable", "pinned"}
    logits = [event for event in taken if event["module"] == "lm_head" and event["operator"] == "mm.default"]
    assert {(event["requested_bytes"], event["dtype"]) for event in logits} == {(2 * B * T * V, "bfloat16")}
    gathered = {event["module"] for event in taken if "partition_parameters.py" in event["where"]}
    assert {"transformer.wte", "transformer.h.1.mlp.c_fc"} <= gathered
    assert len({event["stream"] for event in taken}) > 1


def test_the_last_event_of_a_run_that_dies_is_what_it_died_of(runs: dict[str, Any], events_folder: Path) -> None:
    assert "the allocator wanted" in runs["out-of-memory"]
    last = list(read_events(events_folder / "out-of-memory"))[-1]
    assert (last["action"], last["operator"], last["requested_bytes"]) == ("oom", "workspace", 32 << 20)


@pytest.mark.parametrize("name", sorted(set(SPECS) - set(STOPPED)))
def test_every_step_makes_an_update(name: str, runs: dict[str, Any]) -> None:
    run = runs[name]
    assert isinstance(run, dict), run
    assert [step["skipped"] for step in run["steps"]] == [False, False]


@pytest.mark.parametrize("name", sorted(STOPPED))
def test_what_is_not_covered_stops_with_its_name(name: str, runs: dict[str, Any]) -> None:
    assert STOPPED[name] in runs[name]


def test_the_bf16_optimizer_keeps_fp32_gradients_of_the_whole_model(runs: dict[str, Any]) -> None:
    assert term(runs["bf16-optimizer"], "step", "bf16_optimizer.py", "zeros_like") == 4 * PSI


def test_stage_2_accumulates_in_an_fp32_partition_that_dies_with_the_step(runs: dict[str, Any]) -> None:
    assert term(runs["compact"], "step", "stage_1_and_2.py", "_build_compact_grad_partition_buffer") == block(PSI)
    assert phase(runs["compact"], "step") == phase(runs["plain"], "step")


def test_master_weights_and_states_in_bf16_take_half(runs: dict[str, Any]) -> None:
    # m = 2 in place of 4 for the master and both moments, of a quarter of the model each.
    half = block(4 * PSI // N) - block(2 * PSI // N)
    assert phase(runs["plain"], "step") - phase(runs["bf16-states"], "step") == 3 * half


def test_between_micro_batches_stage_2_keeps_the_gradients_of_its_partition(runs: dict[str, Any]) -> None:
    kept = term(runs["accumulating"], "forward", "stage_1_and_2.py", "copy_grads_in_partition")
    assert 2 * PSI // N <= kept < 2 * PSI // N + 2 * 2 * V * H  # parameters at the edges count whole
    level = phase(runs["plain"], "forward", "peak_bytes")
    assert phase(runs["accumulating"], "forward", "peak_bytes") == level + kept


def test_muon_keeps_its_momentum_in_the_gradients_dtype_and_a_copy_of_it(runs: dict[str, Any]) -> None:
    # Matrices but the head's: "embed" and "lm_head" are what DeepSpeed leaves to Adam (deepspeed/__init__.py).
    muon = 2 * (sum(L * matrices()) + V * H + T * H)
    assert term(runs["muon"], "step", "stage_1_and_2.py", "_muon_momentum_buffer") == muon
    assert term(runs["muon"], "step", "stage_1_and_2.py", "_muon_staging_momentum") == muon


def test_muon_s_momentum_is_of_whole_matrices_and_adam_has_a_group_of_its_own(runs: dict[str, Any]) -> None:
    # Muon sorts its matrices by their shapes, the largest first (original_muon.py, MuonWithAuxAdam.__init__), and a
    # rank's update takes whole ones: of the last of four quarters, all that reach into it.
    matrices_of_muon = sorted([*L * [(3 * H, H), (H, H), (4 * H, H), (H, 4 * H)], (V, H), (T, H)], reverse=True)
    numels = [rows * columns for rows, columns in matrices_of_muon]
    begins = [sum(numels[:index]) for index in range(len(numels))]
    quarter = sum(numels) // N
    reached = sum(numel for begin, numel in zip(begins, numels, strict=True) if begin + numel > sum(numels) - quarter)
    assert reached > quarter
    assert term(runs["muon-of-four"], "step", "stage_1_and_2.py", "_muon_momentum_buffer") == 2 * reached
    # The updates are the gradients now.
    assert term(runs["muon-of-four"], "step", "stage_1_and_2.py", "get_flat_partition") == 2 * reached
    adams = block(4 * (PSI - sum(numels)) // N)
    assert term(runs["muon-of-four"], "step", "fused_adam.py", "zeros_like") == 2 * adams


def test_stage_3_keeps_muon_s_momentum_in_the_communication_s_dtype(runs: dict[str, Any]) -> None:
    muon = sum(L * matrices()) + V * H + T * H
    assert term(runs["muon-3"], "step", "stage3.py", "_create_momentum_buffer") == block(2 * muon // N)
    assert term(runs["muon-3"], "step", "fused_adam.py", "zeros_like") == 2 * block(4 * (PSI - muon) // N)


def test_hpz_adds_a_second_partition_within_the_node(runs: dict[str, Any]) -> None:
    # Of every parameter half, in bf16, in a block of its own; and it is there when the initialisation ends.
    secondary = sum(block(2 * size // 2) for size in parameters())
    assert term(runs["hpz"], "init", "partition_parameters.py", "zero_wrapper", step="init") == secondary


def test_without_its_own_linear_layer_autograd_keeps_the_gathered_weights(runs: dict[str, Any]) -> None:
    kept = phase(runs["torch-linear"], "forward", step=0) - phase(runs["own-linear"], "forward", step=0)
    workspace = 1 << 20  # cublasLt's: torch's layer adds the bias in the product, DeepSpeed's after it
    assert kept == workspace + sum(block(2 * size) for size in [*L * matrices(), V * H])


def test_without_zero_init_the_model_is_built_on_the_host(runs: dict[str, Any]) -> None:
    assert runs["whole"]["dry_run"]["host"]["pageable_bytes"] >= 4 * PSI
    assert runs["quantised"]["dry_run"]["host"]["pageable_bytes"] < 4 * PSI // 2


def test_quantised_weights_are_dequantised_in_fp16_and_cast(runs: dict[str, Any]) -> None:
    assert term(runs["quantised"], "forward", "partition_parameters.py", "CUDAQuantizer.dequantize") >= 2 * V * H


def test_a_drive_needs_locked_buffers_of_the_largest_group_and_no_folder(runs: dict[str, Any]) -> None:
    group = sum(-(-size // N) for size in parameters())
    aligned = -(-group // ALIGNED) * ALIGNED
    more = runs["nvme-6"]["dry_run"]["host"]["locked_bytes"] - runs["nvme-4"]["dry_run"]["host"]["locked_bytes"]
    assert more == 2 * 4 * aligned
    assert not Path("/not/there").exists()


def test_autocast_adds_bf16_copies_of_weights_and_keeps_parameters_in_fp32(runs: dict[str, Any]) -> None:
    assert phase(runs["autocast"], "init") == phase(runs["fp32"], "init")
    head = term(runs["autocast"], "forward", "mingpt/model.py", "_to_copy")
    assert head >= sum(2 * size for size in L * matrices()) + 2 * V * H


def test_a_block_under_autocast_keeps_what_cudas_lists_say(runs: dict[str, Any]) -> None:
    # Counted by hand: NewGELU 86A, eager attention 7Q and its mask, norms' statistics; and the casts of the block's
    # matrices, which autograd holds. Those of the biases die with the cache, when the forward pass leaves autocast.
    def kept(run: Any) -> int:
        return phase(run, "forward") - phase(run, "forward", "level_before_bytes")

    scores = B * HEADS * T * T
    weights = sum(block(2 * size) for size in matrices())
    statistics = 4 * block(4 * B * T)
    expected = 86 * A + 7 * scores + block(T * T) + statistics + weights
    assert kept(runs["autocast-deeper"]) - kept(runs["autocast"]) == expected


def test_autocast_in_fp16_is_not_taken_for_an_overflow(runs: dict[str, Any]) -> None:
    run = runs["autocast-fp16"]
    moments = term(run, "step", "fused_adam.py", "zeros_like")
    assert moments >= 8 * PSI
    assert any(answer["question"] == "found_inf" for answer in run["dry_run"]["answers"])


def test_checkpointing_keeps_one_activation_a_block(runs: dict[str, Any]) -> None:
    without = phase(runs["checkpointed"], "forward") - 2 * A * L
    scalars = 512 * L  # DeepSpeed leaves an empty tensor in the place of each input
    assert phase(runs["reentrant"], "forward") == phase(runs["checkpointed"], "forward")
    assert phase(runs["contiguous"], "forward") == phase(runs["checkpointed"], "forward") + scalars
    assert phase(runs["on-host"], "forward") == without + scalars


def test_a_device_without_flash_attention_saves_a_log_sum_exp(runs: dict[str, Any]) -> None:
    assert term(runs["t4"], "forward", "mingpt/model.py", "_scaled_dot_product_efficient_attention") >= L * (
        2 * A + 4 * B * HEADS * T
    )


def test_a_configuration_that_only_a_dry_run_covers_has_nothing_to_compare(tmp_path: Path) -> None:
    from dsplan.dsconfig.read import read_ds_config
    from dsplan.errors import InputError

    path = tmp_path / "quantised.json"
    adam = {"optimizer": {"type": "AdamW", "params": {"lr": 1e-4}}}
    document = {"train_micro_batch_size_per_gpu": B, **BF16, **zero(3, zero_quantized_weights=True), **adam}
    path.write_text(json.dumps(document))
    found = read_ds_config(path, world_size=N, dry_run=True)
    assert found.not_modelled == ("zero_optimization.zero_quantized_weights = True",)
    assert found.workload.optimizer == "adamw"
    with pytest.raises(InputError, match=r"zero_quantized_weights"):
        read_ds_config(path, world_size=N)
    path.write_text(json.dumps({**document, **zero(3, zero_quantized_gradients=True)}))
    with pytest.raises(InputError, match=r"neither the formulas nor the dry run cover: .*zero_quantized_gradients"):
        read_ds_config(path, world_size=N, dry_run=True)


def test_autocast_has_the_operators_that_it_has_for_cuda() -> None:
    code = """
import torch
from runner.device.fake import autocast, backend
backend.register()
with autocast.registered(autocast.Casts()):
    names = torch._C._dispatch_get_all_op_names()
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    cuda, ours = ({name for name in names if has(name, key)} for key in ("AutocastCUDA", "AutocastPrivateUse1"))
print(sorted(name for name in cuda ^ ours if name.startswith("aten::")))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    # cudnn's are called by CUDA's own convolutions only.
    assert done.stdout.strip() == "['aten::cudnn_convolution', 'aten::cudnn_convolution_transpose']"
