"""Several engines one after the other in one process: each takes steps, and gives back what it held."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dsplan.records import mistakes
from runner.environment import child_environment
from runner.spec import RunSpec
from tests.timing import profiles

pytestmark = pytest.mark.engine

SCRIPT = """
import gc, json
import torch, torch._dynamo
from runner.device import open_device
from runner.spec import RunSpec
device = open_device(RunSpec(model={}, ds_config={}, sequence_length=8))
import deepspeed
deepspeed.init_distributed(dist_backend=device.backend, verbose=False)
from dsplan.dsconfig.emit import emit
from runner.timed_engine import TimedEngine
from tests.gpu.regret_settings import TINY
found = []
for name in ("zero2", "zero3-ckpt"):
    setting = TINY[0]
    from dataclasses import replace
    (plan,) = [plan for plan in replace(setting, strategies=(name,)).plans()]
    model = setting.model_shape()
    limited = []
    engine = TimedEngine(
        model.to_config(), emit(plan, model, setting.cluster), device=device,
        checkpointing=plan.workload.activation_checkpointing, limit=lambda: limited.append(name),
    )
    times = [engine.time(2, 32, warmup=0, steps=1)]
    engine.close()
    del engine
    gc.collect()
    left = sum(t.untyped_storage().nbytes() for t in gc.get_objects() if type(t) in (torch.Tensor, torch.nn.Parameter))
    found.append([name, limited, [[t.seconds, t.forward_s, t.backward_s, t.step_s] for t in times], left])
import time
from runner import calibrate_engine
from runner.calibrate_kernels import Bench
calibrate_engine.DEPTHS = (1, 2)
cases = [(True, ("zero0", "sdpa", "gelu")), (True, ("zero3-ckpt", "eager", "gelu"))]
calibrate_engine._cases = lambda alone: [*cases, (False, ("zero1", "eager", "gelu"))]
bench = Bench(device=device, largest=2**16, deadline=0.0, small=True)  # late: only what is needed is measured
print(json.dumps([found, list(calibrate_engine.engine_steps(bench, 1))]))
"""


def test_engines_follow_each_other_and_leave_nothing(tmp_path: Path) -> None:
    spec = RunSpec(model={}, ds_config={}, sequence_length=8)
    environment = child_environment(spec, os.environ)
    environment |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    environment["OMP_NUM_THREADS"] = "1"
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[2]), environment.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found, rows = json.loads(done.stdout.splitlines()[-1])
    assert [(name, limited) for name, limited, *_ in found] == [("zero2", ["zero2"]), ("zero3-ckpt", ["zero3-ckpt"])]
    for name, _, times, left in found:
        assert all(seconds > 0 for row in times for seconds in row), name
        assert left < 2**18, name  # the model alone is 2**20
    # Calibration's engines live side by side and take turns.
    made = [(row["strategy"], row["checkpointing"], row["attention"], row["num_layers"]) for row in rows]
    assert made == [
        (*case, depth) for case in (("zero0", "none", "sdpa"), ("zero3", "torch", "eager")) for depth in (1, 2)
    ]
    assert mistakes("profile", {**profiles.document(), "engine": rows}) == []
