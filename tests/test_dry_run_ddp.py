"""torch's DDP: real ranks over gloo, the dry run and the formulas, each against the next."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

pytest.importorskip("deepspeed")

from dsplan.dsconfig.ddp import ddp_document
from dsplan.dsconfig.emit import emit
from dsplan.hardware import Cluster
from dsplan.model import ModelShape
from dsplan.plan import Plan
from dsplan.verify_device import CPU
from dsplan.workload import Workload
from runner.spec import RunSpec
from tests.dry_runs import Server
from tests.forked_ranks import ForkedRanks
from tests.oracle.compare import difference
from tests.oracle.ddp import ddp_specification
from tests.oracle.grid import Case
from tests.test_dry_run_cpu import differing, levels

pytestmark = pytest.mark.engine

#: Its gradients fill three buckets of 25 MiB once they are rebuilt.
MODEL = ModelShape(
    num_layers=3, hidden_size=512, num_attention_heads=4, vocab_size=4000, max_position_embeddings=64, name="small"
)
FP32 = Workload(sequence_length=64, micro_batch_size=2, precision="fp32")


def plan(workload: Workload) -> Plan:
    return Plan(name="ddp", ddp=True, workload=workload)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server() as started:
        yield started


def on_the_cpu(workload: Workload, ranks: int) -> RunSpec:
    one = plan(workload)
    return RunSpec(
        model=replace(MODEL, hidden_size=256).to_config(),
        ds_config=ddp_document(one, emit(one, MODEL, Cluster(gpus_per_node=ranks))),
        sequence_length=workload.sequence_length,
        activation_checkpointing=workload.activation_checkpointing,
        device="cpu",
        gpus=ranks,
        steps=3,
    )


@pytest.mark.parametrize(
    "workload",
    [
        replace(FP32, gradient_accumulation_steps=2),
        replace(FP32, activation_checkpointing="torch", optimizer="adagrad"),
    ],
    ids=["accumulation", "checkpointing"],
)
def test_every_phase_of_a_dry_run_ends_with_the_bytes_of_a_real_one(
    workload: Workload, server: Server, forked_ranks: ForkedRanks, tmp_path: Path
) -> None:
    spec = on_the_cpu(workload, 2)
    dry = server.outcome(replace(spec, device="fake", rank=1, target=asdict(CPU)))
    assert isinstance(dry, dict), dry
    real = forked_ranks.run(spec, tmp_path)
    assert {record["optimizer"] for record in real} == {dry["optimizer"]}
    assert [step["skipped"] for step in real[1]["steps"]] == [False] * 3
    assert list(differing(levels(dry), levels(real[1]))) == []
    peaks = [
        (step["phases"][phase]["peak_bytes"], other["phases"][phase]["peak_bytes"])
        for step, other in zip(dry["steps"], real[1]["steps"], strict=True)
        for phase in step["phases"]
    ]
    assert all(abs(one - other) <= 0.002 * other for one, other in peaks), peaks


def test_a_real_run_learns(forked_ranks: ForkedRanks, tmp_path: Path) -> None:
    spec = replace(on_the_cpu(FP32, 2), data="text", steps=6)
    losses = [[step["loss"] for step in record["steps"]] for record in forked_ranks.run(spec, tmp_path)]
    assert all(one[-1] < one[0] for one in losses)


def test_a_dry_run_skips_the_steps_that_a_record_skipped(server: Server) -> None:
    case = Case(name="ddp", model=MODEL, plan=plan(replace(FP32, precision="fp16")), world_size=2)
    record = server.outcome(replace(ddp_specification(case), steps=2, skipped_steps=1))
    assert isinstance(record, dict), record
    assert [step["skipped"] for step in record["steps"]] == [True, False, False]
    first, second, third = (step["phases"]["step"] for step in record["steps"])
    moments = 8 * MODEL.num_parameters
    assert second["level_bytes"] - first["level_bytes"] >= moments
    assert third["level_bytes"] - second["level_bytes"] < moments / 100


@pytest.mark.parametrize(
    ("workload", "ranks"),
    [
        (FP32, 1),
        (replace(FP32, precision="bf16", gradient_accumulation_steps=3, optimizer="sgd"), 2),
        (replace(FP32, precision="fp16", activation_checkpointing="torch"), 8),
        (replace(FP32, precision="bf16", optimizer="adagrad"), 4),
        (replace(FP32, precision="fp16", optimizer="adam"), 3),
    ],
    ids=["fp32", "sgd, accumulation", "fp16, checkpointing", "adagrad", "adam"],
)
def test_the_formulas_are_the_dry_run_s(workload: Workload, ranks: int, server: Server) -> None:
    for model in (MODEL, replace(MODEL, attention="sdpa", dropout=0.0, tie_word_embeddings=True)):
        case = Case(name="ddp", model=model, plan=plan(workload), world_size=ranks)
        record = server.outcome(ddp_specification(case))
        assert isinstance(record, dict), record
        found = difference(case, record)
        far = [phase for phase in found.phases if abs(phase.peak_error) > 4096 or abs(phase.level_error) > 4096]
        assert far == []
