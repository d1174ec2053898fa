"""Outlines: a walk with the batch taken out is the walk event by event, and alike blocks are taken together."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dsplan import walk as walking
from dsplan.catalogue import preset
from dsplan.engine.reduce_buckets import BlockBuckets
from dsplan.engine.stage3 import Stage3
from dsplan.engine.stage12 import Stage12
from dsplan.errors import InputError
from dsplan.kernels import Kernels
from dsplan.model import ModelShape
from dsplan.plan import Plan
from dsplan.strategies import standard_plans
from dsplan.walk import WalkResult, walk
from dsplan.workload import Workload
from dsplan.zero import OffloadOptimizer, OffloadParam, ZeroConfig

from ..tapes import CPU, EXACT, shape, small_shapes

CUDA = Kernels()
NOWHERE = ("", "", -1)  # no step has this name: the walk goes event by event and finds nothing

quick = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])

workloads = st.builds(
    Workload,
    micro_batch_size=st.integers(1, 3),
    sequence_length=st.integers(1, 16),
    gradient_accumulation_steps=st.integers(1, 4),
    precision=st.sampled_from(["fp32", "fp16", "bf16"]),
    optimizer=st.sampled_from(["adamw", "sgd", "lion"]),
    activation_checkpointing=st.sampled_from(["none", "none", "torch", "deepspeed"]),
    communication_data_type=st.sampled_from([None, None, "fp32", "bf16"]),
)
worlds = st.sampled_from([1, 2, 3, 5, 8, 64])
#: Elements: of a bias, of a few matrices, of blocks, of the model.
buckets = st.sampled_from([7, 300, 1500, 4000, 20_000, 100_000, 10**9])


def plainly(model: ModelShape, plan: Plan, world_size: int, kernels: Kernels, **options: Any) -> WalkResult:
    return walk(model, plan, world_size, kernels, target=NOWHERE, **options)


def small(model: ModelShape, kernels: Kernels) -> ModelShape:
    return replace(model, dropout=0.0) if kernels is CPU and model.attention == "sdpa" else model


@quick
@given(
    small_shapes(),
    st.sampled_from([1, 2, 5, 9]),
    workloads,
    worlds,
    st.sampled_from([1, 2]),
    buckets,
    st.tuples(st.booleans(), st.booleans(), st.booleans(), st.booleans()),
    st.sampled_from([CUDA, EXACT, CPU]),
)
def test_stages_1_and_2_with_buckets_of_any_size(
    model: ModelShape,
    num_layers: int,
    workload: Workload,
    world_size: int,
    stage: int,
    bucket: int,
    ways: tuple[bool, bool, bool, bool],
    kernels: Kernels,
) -> None:
    model = replace(small(model, kernels), num_layers=num_layers)
    offload = OffloadOptimizer(device="cpu") if ways[0] and workload.optimizer != "sgd" else OffloadOptimizer()
    zero = ZeroConfig(
        stage=stage, reduce_bucket_size=bucket, overlap_comm=ways[1], reduce_scatter=ways[2], offload_optimizer=offload,
        contiguous_gradients=ways[3] or bucket != 7, round_robin_gradients=bucket == 300,
    )  # fmt: skip
    plan = Plan(name="plan", zero=zero, workload=workload)
    assert walk(model, plan, world_size, kernels) == plainly(model, plan, world_size, kernels)


@quick
@given(
    small_shapes(),
    st.sampled_from([1, 2, 5, 9]),
    workloads,
    worlds,
    st.tuples(buckets, buckets, buckets, st.sampled_from([0, 40, 10**9])),
    st.tuples(st.booleans(), st.booleans(), st.booleans(), st.booleans()),
    st.sampled_from(["none", "none", "cpu", "nvme"]),
    st.sampled_from([CUDA, EXACT, CPU]),
)
def test_stage_3_with_buckets_of_any_size(
    model: ModelShape,
    num_layers: int,
    workload: Workload,
    world_size: int,
    sizes: tuple[int, int, int, int],
    ways: tuple[bool, bool, bool, bool],
    device: str,
    kernels: Kernels,
) -> None:
    model = replace(small(model, kernels), num_layers=num_layers)
    offload = OffloadOptimizer(device=device if workload.optimizer != "sgd" else "none", nvme_path="/scratch")
    zero = ZeroConfig(
        stage=3, reduce_bucket_size=sizes[0], stage3_prefetch_bucket_size=sizes[1], stage3_max_live_parameters=sizes[2],
        stage3_param_persistence_threshold=sizes[3], contiguous_gradients=ways[0], reduce_scatter=ways[1],
        memory_efficient_linear=ways[2], offload_optimizer=offload,
        offload_param=OffloadParam(device="cpu" if ways[3] else "none"),
    )  # fmt: skip
    plan = Plan(name="plan", zero=zero, workload=workload)
    assert walk(model, plan, world_size, kernels) == plainly(model, plan, world_size, kernels)


@quick
@given(small_shapes(), workloads, worlds, st.sampled_from([CUDA, EXACT, CPU]))
def test_every_standard_plan(model: ModelShape, workload: Workload, world_size: int, kernels: Kernels) -> None:
    model = small(model, kernels)
    for plan in standard_plans(model, workload, nvme_path="/scratch"):
        assert walk(model, plan, world_size, kernels) == plainly(model, plan, world_size, kernels), plan.name


@quick
@given(small_shapes(), workloads, st.sampled_from(["sgd", "adamw"]))
def test_data_parallel_without_deepspeed(model: ModelShape, workload: Workload, optimizer: str) -> None:
    workload = replace(workload, optimizer=optimizer, communication_data_type=None)
    plan = Plan(name="ddp", ddp=True, workload=workload)
    try:
        found = walk(model, plan, 2, CUDA)
    except InputError:
        return
    assert found == plainly(model, plan, 2, CUDA)


@pytest.mark.parametrize("name", ["gpt2-xl", "llama-3.2-1b", "mixtral-8x7b"])
@pytest.mark.parametrize("world_size", [3, 64])
def test_models_of_many_layers(name: str, world_size: int) -> None:
    model = preset(name)
    workload = Workload(sequence_length=64, gradient_accumulation_steps=2)
    for plan in standard_plans(model, workload, nvme_path="/scratch"):
        if plan.zero.stage in (1, 2):
            assert walk(model, plan, world_size, CUDA) == plainly(model, plan, world_size, CUDA), plan.name


@quick
@given(st.integers(1, 60))
def test_a_tight_device(share: int) -> None:
    """Where the initialisation has to make room, the outline is made with what the device has."""
    model = shape(num_layers=3)
    plan = Plan(name="plan", zero=ZeroConfig(stage=2, reduce_bucket_size=10), workload=Workload(sequence_length=8))
    capacity = share * model.num_parameters // 10
    found = walk(model, plan, 4, EXACT, capacity_bytes=capacity)
    assert found == plainly(model, plan, 4, EXACT, capacity_bytes=capacity)


@pytest.mark.parametrize("checkpointing", ["none", "torch", "deepspeed"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_what_was_outlined_with_one_batch_serves_another(checkpointing: str, attention: str) -> None:
    model = shape(num_layers=3, attention=attention)
    workload = Workload(activation_checkpointing=checkpointing, gradient_accumulation_steps=2)
    for size, length in ((1, 32), (3, 8), (2, 1), (1, 17)):
        batch = replace(workload, micro_batch_size=size, sequence_length=length)
        for plan in standard_plans(model, batch, nvme_path="/scratch"):
            assert walk(model, plan, 3, CUDA) == plainly(model, plan, 3, CUDA), (plan.name, size, length)


# What makes it fast, counted and not timed.


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_an_engine_is_not_asked_for_every_block(stage: int, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    for kind, name in ((Stage12, "_reduce_into_bucket"), (Stage3, "gradient")):
        act = getattr(kind, name)
        monkeypatch.setattr(kind, name, lambda self, index, act=act: (calls.append(index), act(self, index)))

    def needed(num_layers: int) -> int:
        model = shape(num_layers=num_layers)
        zero = ZeroConfig(stage=stage, reduce_bucket_size=3000)
        calls.clear()
        walking._outlines.cache_clear()
        walk(model, Plan(name="plan", zero=zero, workload=Workload(sequence_length=8)), 8, EXACT, rank=0)
        return len(calls)

    few = needed(20)
    assert needed(40) == few
    assert (few > 0) == (stage > 0)


def test_another_batch_does_not_ask_the_engine_again() -> None:
    model = shape(num_layers=4)
    walking._outlines.cache_clear()
    for size in (1, 2, 3):
        workload = Workload(sequence_length=8 * size, micro_batch_size=size)
        for plan in standard_plans(model, workload):
            walk(model, plan, 4, EXACT)
    found = walking._outlines.cache_info()
    assert found.misses == len(standard_plans(model, Workload()))
    assert found.hits == 2 * found.misses


@quick
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=5),
    st.integers(1, 12),
    st.integers(9, 60),
    st.integers(0, 9),
    st.integers(1, 40),
    st.data(),
)
def test_block_buckets_are_those_of_gradients_one_by_one(
    sizes: list[int], num_blocks: int, limit: int, pending: int, partition: int, data: st.DataObject
) -> None:
    """Gradients of a block arrive in any order; a bucket is emptied before the gradient that no longer fits."""
    order = data.draw(st.permutations(range(len(sizes))))
    onwards = data.draw(st.sampled_from([1, -1]))
    starts = [sum(sizes[:index]) for index in range(len(sizes))]
    base = 0 if onwards == 1 else (num_blocks - 1) * sum(sizes)
    found = BlockBuckets(
        tuple(sizes[index] for index in order), tuple(starts[index] for index in order),
        num_blocks=num_blocks, onwards=onwards, limit=limit, pending=pending, base=base, partition=partition,
    )  # fmt: skip
    in_bucket, held = pending, []
    places, spans, members = [], [], []
    for block in range(num_blocks):
        for place, index in enumerate(order):
            if in_bucket + sizes[index] > limit:
                places.append((block, place))
                members.append(held)
                in_bucket, held = 0, []
            in_bucket += sizes[index]
            held = [*held, (block, place)]
    members.append(held)
    assert [found.bucket(number)[1:3] for number in range(found.count)] == places
    assert [found.gradients(bucket) for bucket in range(len(members))] == members
    for bucket, member in enumerate(members):
        begins = [base + onwards * block * sum(sizes) + starts[order[place]] for block, place in member]
        ends = [begin + sizes[order[place]] for begin, (_, place) in zip(begins, member, strict=True)]
        spans.append((min(begins), max(ends)) if member else found.bucket(bucket)[4:])
        assert found.bucket(bucket).elements == sum(sizes[order[place]] for _, place in member)
        if 0 < bucket < len(places):
            assert found._kind(bucket) == (member[0][1], min(begins) // partition != (max(ends) - 1) // partition)
    assert [found.bucket(number)[4:] for number in range(found.count + 1)] == spans
