"""What a run of torch's DDP is told: what a DeepSpeed configuration and torch have in common."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dsplan.dsconfig.ddp import ddp_document, ddp_plan, is_ddp
from dsplan.dsconfig.emit import emit
from dsplan.errors import InputError
from dsplan.hardware import Cluster
from dsplan.model import ModelShape
from dsplan.plan import Plan
from dsplan.workload import Workload

MODEL = ModelShape(num_layers=2, hidden_size=64, num_attention_heads=2)
FP16 = Workload(precision="fp16", micro_batch_size=3, gradient_accumulation_steps=2)
PLAN = Plan(name="ddp", ddp=True, workload=FP16, gradient_clipping=0.5)


def test_it_says_what_torch_has_too_and_nothing_of_zero() -> None:
    emitted = emit(PLAN, MODEL, Cluster(gpus_per_node=4))
    document = ddp_document(PLAN, emitted)
    assert is_ddp(document)
    assert not is_ddp(emitted)
    assert document["train_batch_size"] == 24
    assert document["fp16"]["enabled"]
    assert document["optimizer"]["type"] == "AdamW"
    assert {"zero_optimization", "scheduler", "steps_per_print"}.isdisjoint(document)
    assert ddp_plan(document, FP16, "ddp") == PLAN


def test_deepspeed_s_checkpointing_is_refused() -> None:
    plan = replace(PLAN, workload=replace(FP16, activation_checkpointing="deepspeed"))
    with pytest.raises(InputError, match="activation_checkpointing deepspeed is DeepSpeed's own; with ddp use torch"):
        ddp_document(plan, emit(plan, MODEL, Cluster(gpus_per_node=4)))
