"""Every strategy that is emitted is taken by the real engine, not only by its parser."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from dsplan.dsconfig.emit import emit
from dsplan.hardware import Cluster
from dsplan.model import ModelShape
from dsplan.plan import Plan
from dsplan.strategies import standard_plans
from dsplan.workload import Workload

ROOT = Path(__file__).parents[2]
MODEL = ModelShape(
    num_layers=2, hidden_size=64, num_attention_heads=4, vocab_size=128, max_position_embeddings=32, dropout=0.0
)


def _plans() -> list[Plan]:
    """Every strategy but NVMe, which needs libaio, in bf16; stages 0 to 3 in fp32; both kinds of checkpointing."""
    plans = [plan for plan in standard_plans(MODEL, Workload(sequence_length=16)) if "nvme" not in plan.name]
    fp32 = list(standard_plans(MODEL, Workload(sequence_length=16, precision="fp32"))[:4])
    deepspeed = standard_plans(MODEL, Workload(sequence_length=16, activation_checkpointing="deepspeed"))[:4]
    return [
        *plans,
        *(replace(plan, name=f"{plan.name}-fp32") for plan in fp32),
        *(replace(plan, name=f"{plan.name}-deepspeed") for plan in deepspeed),
    ]


@pytest.mark.engine
def test_the_engine_takes_a_step_with_every_emitted_configuration(tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    files = []
    for plan in _plans():
        case = {
            "ds_config": emit(plan, MODEL, Cluster()),
            "model": MODEL.to_config(),
            "checkpointing": plan.workload.activation_checkpointing,
        }
        files.append(tmp_path / f"{plan.name}.json")
        files[-1].write_text(json.dumps(case))
    single = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    environment = {**os.environ, **single, "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(ROOT)}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    done = subprocess.run(
        [sys.executable, "-m", "tests.dsconfig.real_engine", *map(str, files)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=480,
        check=False,
    )
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"file"')]
    assert len(lines) == len(files), done.stderr[-2000:]
    assert [line for line in lines if line["error"] is not None] == []
