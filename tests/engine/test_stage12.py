"""Stages 1 and 2: where the model is flattened, and how a gradient larger than the bucket is reduced."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dsplan.catalogue import accelerator, preset
from dsplan.engine import Run
from dsplan.engine.stage12 import Stage12
from dsplan.hardware import Accelerator
from dsplan.ledger import Ledger
from dsplan.modelfile import changed
from dsplan.partition import padded_elements
from dsplan.plan import Plan
from dsplan.walk import WalkResult, capacity_of, walk
from dsplan.workload import Workload
from dsplan.zero import ZeroConfig

from ..tapes import CPU, EXACT, shape

MODEL = shape(attention="sdpa")
WORKLOAD = Workload(sequence_length=8, precision="bf16")
E, WORLD = 2, 64  # ranks enough for the flat copies to be the highest of the initialisation


def walked(stage: int, capacity_bytes: int | None) -> WalkResult:
    plan = Plan(name="plan", zero=ZeroConfig(stage=stage, reduce_bucket_size=10), workload=WORKLOAD)
    return walk(MODEL, plan, WORLD, EXACT, capacity_bytes=capacity_bytes)


@pytest.mark.parametrize("stage", [1, 2])
def test_the_model_is_flattened_on_the_device_only_where_it_has_room(stage: int) -> None:
    model, flat = E * MODEL.num_parameters, E * padded_elements(MODEL, WORLD)
    roomy, tight = walked(stage, model + flat), walked(stage, model + flat - 1)
    assert roomy == walked(stage, None)
    on_device, on_host = (found.steps[0].phases["init"] for found in (roomy, tight))
    assert on_device.peak_bytes == model + flat
    assert on_host.peak_bytes < on_device.peak_bytes
    assert on_host.level_bytes == on_device.level_bytes
    assert tight.steps[1:] == roomy.steps[1:]
    # Both copies are on the host instead; while the model was built it held it in fp32.
    assert tight.pageable_bytes == max(roomy.pageable_bytes, model + flat)


def test_the_cpu_has_one_memory() -> None:
    plan = Plan(name="plan", zero=ZeroConfig(stage=2), workload=replace(WORKLOAD, precision="fp32"))
    model = replace(MODEL, attention="eager")
    assert walk(model, plan, 1, CPU, capacity_bytes=1) == walk(model, plan, 1, CPU)


def test_what_a_card_has_for_tensors() -> None:
    h200 = accelerator("h200")
    assert h200.usable_bytes is not None
    assert capacity_of(h200, 1) == h200.usable_bytes - h200.context_bytes
    assert capacity_of(h200, 2) == h200.usable_bytes - h200.context_bytes - h200.communication_bytes
    assert capacity_of(None, 1) is None
    assert capacity_of(Accelerator(name="cpu", label="CPU", kind="cpu", memory_bytes=None), 1) is None


@pytest.mark.parametrize(
    ("begin", "end", "limit", "groups"),
    [
        (10, 100, 200, [(90, 4, True)]),  # one group
        (10, 100, 20, [(40, 2, True), (25, 1, False), (25, 1, False)]),  # 15 is not more than 20
        (0, 50, 24, [(25, 1, False), (25, 1, True)]),
        (30, 110, 30, [(45, 2, True), (35, 2, False)]),
    ],
)
def test_a_gradient_larger_than_the_bucket_goes_in_groups(
    begin: int, end: int, limit: int, groups: list[tuple[int, int, bool]]
) -> None:
    plan = Plan(name="plan", zero=ZeroConfig(stage=2, reduce_bucket_size=limit), workload=WORKLOAD)
    engine = Stage12(Run(model=MODEL, plan=plan, world_size=5, kernels=EXACT, ledger=Ledger(EXACT), rank=1))
    engine.partition = replace(engine.partition, size=25)
    assert engine.groups_of_oversized(0, begin, end) == groups


@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("kind", ["none", "torch"])
def test_blocks_of_which_none_is_trained_are_passed_over(stage: int, kind: str) -> None:
    """With micro batches accumulated, where blocks that are alike are else reduced together."""
    model = changed(preset("llama-3.2-1b"), {"num_layers": 3, "frozen_layers": 3})
    workload = replace(WORKLOAD, activation_checkpointing=kind, gradient_accumulation_steps=2)
    plan = Plan(name="plan", zero=ZeroConfig(stage=stage), workload=workload)
    found = walk(model, plan, 8, EXACT)
    nowhere = ("", "", -1)  # no step has this name: the walk goes event by event
    assert found.steps == walk(model, plan, 8, EXACT, target=nowhere).steps
