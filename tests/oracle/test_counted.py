"""Small models as torch's allocator counts them, without a dry run (test_committed.py has theirs)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dsplan import buffers
from dsplan.catalogue import accelerator
from dsplan.estimate import estimate
from dsplan.hardware import Cluster
from dsplan.kernels import kernels_of
from dsplan.model import ModelShape
from dsplan.plan import Plan
from dsplan.verdict.counted import SMALL_LAYERS, counted
from dsplan.verdict.pressure import replay
from dsplan.verdict.trace import trace
from dsplan.walk import walk
from dsplan.workload import Workload
from dsplan.zero import OffloadOptimizer, ZeroConfig

CARD = accelerator("h200")
KERNELS = kernels_of(CARD)
MODEL = ModelShape(num_layers=3, hidden_size=320, num_attention_heads=5, vocab_size=10_007, max_position_embeddings=128)
WORKLOAD = Workload(micro_batch_size=4, sequence_length=128, precision="bf16")


def _plan(stage: int, **zero: object) -> Plan:
    return Plan(name="one", workload=WORKLOAD, zero=ZeroConfig(stage=stage, reduce_bucket_size=10**6, **zero))  # type: ignore[arg-type]


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_the_peak_is_that_of_a_replay_of_every_request(stage: int) -> None:
    plan = _plan(stage)
    walked = walk(MODEL, plan, 3, KERNELS, rank=0)
    found = counted(MODEL, plan, 3, KERNELS, walked, rank=0)
    whole = replay(trace(MODEL, plan, 3, KERNELS, rank=0, num_steps=len(walked.steps) - 1))
    assert max(step.peak_bytes for step in found.steps) == whole.allocated_bytes
    assert [(step.name, list(step.phases)) for step in found.steps] == [
        (step.name, list(step.phases)) for step in walked.steps
    ]
    tensors = walk(MODEL, plan, 3, replace(KERNELS, whole_segments=False), rank=0)
    for ours, least in zip(found.steps, tensors.steps, strict=True):
        for name, phase in least.phases.items():
            assert phase.level_bytes - 8192 <= ours.phases[name].level_bytes
            assert phase.peak_bytes - 8192 <= ours.phases[name].peak_bytes < 1.1 * phase.peak_bytes


def test_of_several_ranks_each_phase_is_the_worst_one_s() -> None:
    plan = _plan(2)
    every = counted(MODEL, plan, 3, KERNELS, walk(MODEL, plan, 3, KERNELS))
    for rank in (0, 2):
        one = counted(MODEL, plan, 3, KERNELS, walk(MODEL, plan, 3, KERNELS, rank=rank), rank=rank)
        for step, other in zip(every.steps, one.steps, strict=True):
            for name, phase in other.phases.items():
                assert step.phases[name].peak_bytes >= phase.peak_bytes


def test_what_is_not_small_is_replayed_only_where_that_is_asked_for() -> None:
    large = replace(MODEL, num_layers=SMALL_LAYERS + 1)
    walked = walk(large, _plan(0), 1, KERNELS)
    assert counted(large, _plan(0), 1, KERNELS, walked) is walked
    assert counted(large, _plan(0), 1, KERNELS, walked, however_large=True) is not walked
    other = replace(KERNELS, whole_segments=False)  # a device without that allocator
    walked = walk(MODEL, _plan(0), 1, other)
    assert counted(MODEL, _plan(0), 1, other, walked, however_large=True) is walked


def test_the_terms_add_up_to_the_counted_peak() -> None:
    cluster = Cluster(accelerator=CARD, gpus_per_node=2)
    rows = estimate(MODEL, [_plan(stage) for stage in range(4)], cluster, explain=True, ladder=False).plans
    for row in rows:
        assert sum(term.size_bytes for term in row.terms if term.place == "device") == row.device.peak_bytes
    assert any("split off" in term.name for row in rows for term in row.terms)


def test_an_update_s_temporaries_come_one_operation_after_the_other() -> None:
    workload = replace(WORKLOAD, optimizer="adagrad")
    for stage, tensors in ((0, len(MODEL.parameters)), (3, 1)):
        plan = replace(_plan(stage), workload=workload)
        found = trace(MODEL, plan, 1, KERNELS, rank=0, num_steps=1)
        sizes = [
            size
            for (size, _), term in zip(found.operations, found.terms, strict=True)
            if term is buffers.OPTIMIZER_TEMPORARY
        ]
        of_step = sizes[-2 * tensors :]
        assert len(of_step) == 2 * tensors
        assert of_step[:tensors] == of_step[tensors:]


def test_a_small_sub_group_stays_in_memory_where_the_others_are_swapped() -> None:
    """swap_tensor/optimizer_utils.py is_swappable_tensor: from 1 MiB of fp32 on."""
    nvme = OffloadOptimizer(device="nvme", nvme_path="/nvme")
    in_memory = _plan(3, offload_optimizer=OffloadOptimizer(device="cpu"))
    swapped = _plan(3, offload_optimizer=nvme)
    ranks = 64  # of 9.7 million parameters each has 0.6 MiB in fp32
    small, on_host = walk(MODEL, swapped, ranks, KERNELS), walk(MODEL, in_memory, ranks, KERNELS)
    assert small.pageable_bytes == on_host.pageable_bytes
    assert small.pinned_bytes > on_host.pinned_bytes  # and the buffers, which are there all the same
    assert walk(MODEL, swapped, 1, KERNELS).pageable_bytes < walk(MODEL, in_memory, 1, KERNELS).pageable_bytes
