"""Gradients accumulated or reduced in another dtype than the model's: the engines that do, to the byte.

Legend: Ψ parameters, Ψp padded to 2N, P = Ψp / N, e = 2 bytes of a model element.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from dsplan.engine import Run, engine_for
from dsplan.engine.bf16 import Bf16
from dsplan.engine.stage1_fp32 import Stage1Fp32
from dsplan.engine.stage2_fp32 import Stage2Fp32
from dsplan.engine.stage12 import Stage12
from dsplan.errors import InputError
from dsplan.ledger import Ledger, StepMemory
from dsplan.partition import padded_elements
from dsplan.plan import Plan
from dsplan.walk import walk
from dsplan.workload import Workload
from dsplan.zero import OffloadOptimizer, ZeroConfig

from ..tapes import EXACT, shape

MODEL = shape()
BF16 = Workload(sequence_length=8, precision="bf16")
FP32_GRADIENTS = replace(BF16, grad_accum_dtype="fp32")
WORLD = 4


def walked(zero: ZeroConfig, workload: Workload, rank: int | None = None) -> tuple[StepMemory, ...]:
    return walk(MODEL, Plan(name="plan", zero=zero, workload=workload), WORLD, EXACT, rank=rank).steps


def engine(zero: ZeroConfig, workload: Workload) -> object:
    plan = Plan(name="plan", zero=zero, workload=workload)
    return engine_for(Run(model=MODEL, plan=plan, world_size=WORLD, kernels=EXACT, ledger=Ledger(EXACT)))


def test_each_combination_has_the_engine_that_deepspeed_takes() -> None:
    assert type(engine(ZeroConfig(stage=1), BF16)) is Stage12
    assert type(engine(ZeroConfig(stage=1), FP32_GRADIENTS)) is Bf16
    offloaded = ZeroConfig(stage=1, offload_optimizer=OffloadOptimizer(device="cpu"))
    assert type(engine(offloaded, FP32_GRADIENTS)) is Stage1Fp32
    assert type(engine(ZeroConfig(stage=1), replace(FP32_GRADIENTS, precision="fp16"))) is Stage1Fp32
    assert type(engine(ZeroConfig(stage=2), FP32_GRADIENTS)) is Stage2Fp32
    assert type(engine(ZeroConfig(stage=2), replace(FP32_GRADIENTS, precision="fp16"))) is Stage2Fp32


@pytest.mark.parametrize(
    ("zero", "workload", "match"),
    [
        (ZeroConfig(stage=0), FP32_GRADIENTS, "stage 0 accumulates gradients in the model's dtype only"),
        (ZeroConfig(stage=1), replace(FP32_GRADIENTS, optimizer="adagrad"), "Adagrad"),
        (ZeroConfig(stage=2), Workload(precision="fp32", grad_accum_dtype="bf16"), "bf16 at stage 2 with fp32"),
    ],
)
def test_what_has_no_engine_is_refused(zero: ZeroConfig, workload: Workload, match: str) -> None:
    with pytest.raises(InputError, match=match):
        walked(zero, workload)


def test_stage_1_in_bf16_holds_fp32_gradients_of_the_whole_model() -> None:
    padded = padded_elements(MODEL, WORLD)
    init, first, steady = walked(ZeroConfig(stage=1), FP32_GRADIENTS)
    without, *_ = walked(ZeroConfig(stage=1), BF16)
    assert init.phases["init"].level_bytes - without.phases["init"].level_bytes == 4 * padded
    states = 8 * padded // WORLD
    assert steady.phases["step"].level_bytes - init.phases["init"].level_bytes == states
    assert first.phases["forward"].peak_bytes + states == steady.phases["forward"].peak_bytes


def test_stage_2_holds_one_fp32_partition_from_the_backward_to_the_update() -> None:
    zero = ZeroConfig(stage=2, reduce_bucket_size=10)
    part = padded_elements(MODEL, WORLD) // WORLD
    for workload, held in (
        (FP32_GRADIENTS, 4 * part),
        (replace(FP32_GRADIENTS, gradient_accumulation_steps=3), 4 * part),
    ):
        init, first, _ = walked(zero, workload, rank=1)
        after = init.phases["init"].level_bytes
        assert first.phases["backward"].level_bytes - after == held
        assert first.phases["step"].level_bytes - after == 8 * part


def test_stage_3_s_flat_gradients_and_its_bucket_have_their_own_dtypes() -> None:
    zero = ZeroConfig(stage=3, reduce_bucket_size=1000)
    parts = sum(-(-parameter.numel // WORLD) for parameter in MODEL.parameters)

    def level(workload: Workload) -> int:
        return walked(zero, workload)[0].phases["init"].level_bytes

    assert level(FP32_GRADIENTS) - level(BF16) == 2 * parts
    assert level(replace(BF16, communication_data_type="fp32")) - level(BF16) == 2 * 1000
    assert level(replace(BF16, communication_data_type="fp16")) == level(BF16)


def test_stage_1_in_fp16_holds_fp32_gradients_until_the_boundary() -> None:
    """Whole, and the bucket of those that are other ranks' outlives the backward pass: it goes in the step."""
    zero = ZeroConfig(stage=1, reduce_bucket_size=MODEL.num_parameters)
    workload = replace(FP32_GRADIENTS, precision="fp16", gradient_accumulation_steps=2)
    _, first, _ = walked(zero, workload)
    _, without, _ = walked(zero, replace(workload, grad_accum_dtype=None))
    part = padded_elements(MODEL, WORLD) // WORLD
    left = first.phases["backward"].level_bytes - without.phases["backward"].level_bytes
    bucket, own, views = 4 * MODEL.num_parameters, 4 * part, 2 * part
    assert left > bucket
    assert left <= bucket + own + views + 4 * len(MODEL.parameters) * 512
    assert first.phases["step"].level_bytes == without.phases["step"].level_bytes


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_reducing_in_fp32_costs_a_copy(stage: int) -> None:
    def highest(workload: Workload) -> int:
        return max(step.phases["backward"].peak_bytes for step in walked(ZeroConfig(stage=stage), workload)[1:])

    zero_bytes = highest(BF16)
    assert highest(replace(BF16, communication_data_type="fp32")) > zero_bytes


def test_the_model_s_own_dtype_is_the_default() -> None:
    assert replace(BF16, grad_accum_dtype="bf16", communication_data_type="bf16") == BF16
    with pytest.raises(InputError, match="grad_accum_dtype"):
        replace(BF16, grad_accum_dtype="fp8")
