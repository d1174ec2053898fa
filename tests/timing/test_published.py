"""Published epoch times: 1.7B on eight A100 of 40 GB, 128 steps, from the README of SeanNaren's minGPT.

Absolute seconds are those of another year's software and of a data loader; order and ratios are the engine's.
"""

from __future__ import annotations

from itertools import pairwise

import pytest

from dsplan.catalogue import accelerator, preset
from dsplan.hardware import Cluster
from dsplan.strategies import ddp_plans, find_plan, standard_plans
from dsplan.timing.rates import machine
from dsplan.timing.step_time import step_time
from dsplan.workload import Workload

#: Seconds of one epoch; offload is of the optimizer.
EPOCHS = {"ddp": 43.69, "zero3": 45.05, "zero3-offload": 248.39, "zero3-offload-ckpt": 256.91}


def test_published_epochs_come_in_order_and_offload_costs_what_it_did() -> None:
    model = preset("1.7B")
    workload = Workload(micro_batch_size=1, sequence_length=128, precision="fp16")
    on = Cluster(accelerator=accelerator("a100-40gb"), gpus_per_node=8, host_memory_bytes=10**12)
    plans = [*ddp_plans(workload), *standard_plans(model, workload)]
    of = machine(accelerator("a100-40gb"))
    seconds = [step_time(model, find_plan(plans, name), on, of).seconds for name in EPOCHS]
    assert all(faster < slower for faster, slower in pairwise(seconds))
    for found, published in zip(seconds, EPOCHS.values(), strict=True):
        assert found / seconds[0] == pytest.approx(published / EPOCHS["ddp"], rel=0.3)
    assert seconds[2] / seconds[1] == pytest.approx(5.51, rel=0.3)
