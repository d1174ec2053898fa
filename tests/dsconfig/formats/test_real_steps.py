"""The Trainer and accelerate take a real step with what is emitted, and DeepSpeed's engine has the plan.

Every stage, with and without offload, in bf16 and fp32, on the CPU: some twenty seconds a reader, and minutes
when DeepSpeed compiles its kernels first.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from dsplan.dsconfig.emit import emit
from dsplan.dsconfig.formats.target import Target
from dsplan.hardware import Cluster
from dsplan.model import ModelShape
from dsplan.plan import Plan
from dsplan.strategies import standard_plans
from dsplan.workload import Workload

from .readers import as_planned, resolved, written

MODEL = ModelShape(num_layers=2, hidden_size=64, num_attention_heads=2, vocab_size=128, max_position_embeddings=32)
WORKLOAD = Workload(micro_batch_size=2, gradient_accumulation_steps=3, sequence_length=16)


def plans(reader: str) -> list[Plan]:
    """Every strategy without NVMe, which needs libaio, in bf16; stages 0 to 3 in fp32.

    Checkpointing is an argument of the Trainer's, with which stages 0 and 3 are run; accelerate's files are the
    same with it.
    """
    recomputing = ("zero0-ckpt", "zero3-ckpt") if reader == "hf" else ()
    standard = [
        plan
        for plan in standard_plans(MODEL, WORKLOAD)
        if "nvme" not in plan.name and ("ckpt" not in plan.name or plan.name in recomputing)
    ]
    fp32 = standard_plans(MODEL, replace(WORKLOAD, precision="fp32"))[:4]
    return [*standard, *(replace(plan, name=f"{plan.name}-fp32") for plan in fp32)]


@pytest.mark.engine
@pytest.mark.parametrize("reader", ["hf", "accelerate"])
def test_the_engine_of_every_strategy_has_the_plan(reader: str, tmp_path: Path) -> None:
    folders = []
    for plan in plans(reader):
        folders.append(tmp_path / plan.name)
        document = emit(plan, MODEL, Cluster())
        emission = written(reader, Target(plan=plan, model=MODEL, cluster=Cluster(), document=document), folders[-1])
        words = shlex.split(next(iter(emission.launch.values())))
        (folders[-1] / "words.json").write_text(json.dumps(words[2:]))  # after "accelerate launch"
    single = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # ninja
    configs = resolved(reader, folders, "train", **single, DS_ACCELERATOR="cpu", PATH=path)
    wrong = [
        plan.name
        for plan, config in zip(plans(reader), configs, strict=True)
        if not as_planned(config, emit(plan, MODEL, Cluster()))
    ]
    assert wrong == []
