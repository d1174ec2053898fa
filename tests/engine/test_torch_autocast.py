"""DeepSpeed's torch_autocast: fp32 weights and states, lower activations, and what is cast when."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dsplan.engine.autocast import WEIGHT_COPIES, autocast_programs
from dsplan.errors import InputError
from dsplan.kernels import Kernels
from dsplan.model import ModelShape
from dsplan.plan import Plan
from dsplan.tape import ALLOC, FREE
from dsplan.walk import WalkResult, walk
from dsplan.workload import Workload
from dsplan.zero import ZeroConfig

MODEL = ModelShape(
    num_layers=3, hidden_size=64, num_attention_heads=2, vocab_size=128, max_position_embeddings=64, dropout=0.1
)
FP32 = Workload(sequence_length=64, micro_batch_size=8, precision="fp32")


def plan(stage: int, checkpointing: str = "none", **zero: bool) -> Plan:
    section = ZeroConfig(stage=stage, reduce_bucket_size=50_000, stage3_param_persistence_threshold=0, **zero)
    return Plan(
        name="mine",
        zero=section,
        workload=replace(FP32, activation_checkpointing=checkpointing),
        torch_autocast="bf16",
    )


def walked(one: Plan) -> WalkResult:
    return walk(MODEL, one, 4, Kernels(), rank=0)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("checkpointing", ["none", "torch", "deepspeed"])
def test_states_are_those_of_fp32_and_nothing_is_left_after_a_step(stage: int, checkpointing: str) -> None:
    one = plan(stage, checkpointing)
    lowered, full = walked(one).steps, walked(replace(one, torch_autocast=None)).steps
    for a, b in zip(lowered, full, strict=True):
        for phase in ("init", "step"):
            if phase in a.phases:
                assert a.phases[phase].level_bytes == b.phases[phase].level_bytes
    assert lowered[0].phases["init"].peak_bytes == full[0].phases["init"].peak_bytes


def test_casts_of_weights_are_kept_for_the_backward_pass_but_at_stage_3() -> None:
    """aten autocast_mode.cpp keeps those of leaves; stage 3's own layer casts a view of the weight."""

    def kept(kernels: Kernels) -> int:
        events = autocast_programs(MODEL, replace(FP32, precision="bf16"), kernels).block.forward
        return sum({ALLOC: size, FREE: -size}.get(kind, 0) for kind, size, what in events if what is WEIGHT_COPIES)

    linear = [parameter for parameter in MODEL.block_parameters if not parameter.name.startswith("ln_")]
    assert kept(Kernels()) == sum(Kernels().rounded(2 * parameter.numel) for parameter in linear)
    assert kept(Kernels(zero3_linear=True)) == 0


def test_deepspeed_s_checkpoint_recomputes_in_fp32() -> None:
    torch, deepspeed = (
        walked(plan(2, kind)).steps[-1].phases["backward"].peak_bytes for kind in ("torch", "deepspeed")
    )
    full = walked(replace(plan(2, "deepspeed"), torch_autocast=None)).steps[-1].phases["backward"].peak_bytes
    assert deepspeed > torch
    assert deepspeed == full


def test_what_does_not_go_with_it_is_refused() -> None:
    with pytest.raises(InputError, match="the weights stay fp32; bf16 does not go with it"):
        Plan(name="mine", workload=Workload(precision="bf16"), torch_autocast="bf16")
    with pytest.raises(InputError, match=r"torch_autocast\.dtype"):
        Plan(name="mine", workload=FP32, torch_autocast="fp32")
    with pytest.raises(InputError, match="communication_data_type: is not modelled together"):
        Plan(name="mine", workload=replace(FP32, communication_data_type="bf16"), torch_autocast="bf16")
    with pytest.raises(InputError, match="ddp lowers to the precision of the workload"):
        Plan(name="mine", workload=FP32, torch_autocast="bf16", ddp=True)
    with pytest.raises(InputError, match="memory_efficient_linear only"):
        walked(plan(3, memory_efficient_linear=False))
