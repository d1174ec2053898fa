"""What a run adds to a process: tensors, and the process' own growth, at one moment."""

from __future__ import annotations

import pytest

from dsplan.catalogue import accelerator
from dsplan.kernels import kernels_of
from dsplan.model import ModelShape
from dsplan.overhead import process_memory
from dsplan.plan import Plan
from dsplan.prediction import predict
from dsplan.verdict.risen import risen_bytes
from dsplan.walk import walk
from dsplan.workload import Workload
from dsplan.zero import OffloadOptimizer, ZeroConfig

CARD = accelerator("h200")
KERNELS = kernels_of(CARD)
MODEL = ModelShape(num_layers=2, hidden_size=512, num_attention_heads=8, vocab_size=10_000, max_position_embeddings=64)


def _plan(stage: int, **zero: object) -> Plan:
    workload = Workload(sequence_length=64, precision="bf16")
    return Plan(name="one", workload=workload, zero=ZeroConfig(stage=stage, **zero))  # type: ignore[arg-type]


def _grown(ranks: int) -> int:
    process = process_memory(ranks)
    return process.steps_bytes - process.start_bytes


@pytest.mark.parametrize("ranks", [1, 2])
def test_without_host_tensors_a_process_rises_by_itself_alone(ranks: int) -> None:
    """A small model's copies on the host have gone when the kernels are loaded, and were less."""
    for stage in (0, 2, 3):
        assert risen_bytes(MODEL, _plan(stage), ranks, KERNELS) == _grown(ranks)


def test_what_stays_on_the_host_comes_on_top() -> None:
    plan = _plan(2, offload_optimizer=OffloadOptimizer(device="cpu", pin_memory=False))
    walked = walk(MODEL, plan, 1, KERNELS)
    risen = risen_bytes(MODEL, plan, 1, KERNELS)
    assert _grown(1) + 12 * MODEL.num_parameters < risen <= _grown(1) + walked.host_bytes
    assert predict(MODEL, plan, CARD, 1).host_bytes == risen
