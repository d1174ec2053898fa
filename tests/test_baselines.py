"""The competitors are who they say they are: DeepSpeed's own functions, and the figures of the ZeRO paper."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from itertools import product
from typing import Any

import pytest

from dsplan.catalogue import preset
from dsplan.model import ModelShape
from dsplan.plan import Plan
from dsplan.workload import Workload
from dsplan.zero import OffloadOptimizer, OffloadParam, ZeroConfig
from tests.baselines import deepspeed_estimate, largest_layer_parameters, plain_formula, states_per_parameter

CPU = {"offload_optimizer": OffloadOptimizer(device="cpu")}
CPU_BOTH = {**CPU, "offload_param": OffloadParam(device="cpu")}
PARAM = {"offload_param": OffloadParam(device="cpu")}
WIDE = ModelShape(num_layers=2, hidden_size=512, num_attention_heads=4, vocab_size=65, max_position_embeddings=32)
TIED = replace(WIDE, vocab_size=5000, tie_word_embeddings=True)
RANKS = (1, 2, 3, 7, 8)
SETTINGS: list[tuple[int, dict[str, Any]]] = [(2, {}), (2, CPU), (3, {}), (3, CPU), (3, CPU_BOTH), (3, PARAM)]


def plan(stage: int, zero: dict[str, Any] | None = None, precision: str = "bf16", optimizer: str = "adamw") -> Plan:
    workload = Workload(precision=precision, optimizer=optimizer)
    return Plan(name="p", zero=ZeroConfig(stage=stage, **(zero or {})), workload=workload)


#: Run apart, because planning and its tests import neither torch nor DeepSpeed.
SCRIPT = """
import json, sys
from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs as zero3, model_to_params
from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs as zero2
from mingpt import GPT, GPTConfig

asked = json.load(sys.stdin)
models = [list(model_to_params(GPT(GPTConfig.from_dict(config)))) for config in asked["models"]]
answers = []
for stage, total, largest, gpus, optimizer, parameters in asked["estimates"]:
    given = {"num_gpus_per_node": gpus, "num_nodes": 1, "cpu_offload": optimizer}
    if stage == 2:
        host, device = zero2(total, **given)
    else:
        host, device, _ = zero3(total, largest, cpu_offload_params=parameters, zero_init=True, **given)
    answers.append([device, host])
print(json.dumps([models, answers]))
"""


@pytest.mark.engine
def test_they_are_what_the_installed_deepspeed_computes() -> None:
    pytest.importorskip("deepspeed")
    models = (preset("gpt2"), preset("1.7B"), preset("10B"))
    questions, ours = [], []
    for model, gpus, (stage, zero) in product(models, RANKS, SETTINGS):
        asked = plan(stage, zero)
        flags = (asked.zero.offloads_optimizer, asked.zero.offloads_parameters)
        questions.append([stage, model.num_parameters, largest_layer_parameters(model), gpus, *flags])
        found = deepspeed_estimate(model, asked, gpus)
        ours.append([found.device_bytes, found.host_bytes])
    small = (WIDE, TIED)
    document = {"models": [model.to_config() for model in small], "estimates": questions}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT],
        input=json.dumps(document),
        capture_output=True,
        text=True,
        check=True,
    )
    counted, answers = json.loads(done.stdout.splitlines()[-1])
    assert counted == [[model.num_parameters, largest_layer_parameters(model)] for model in small]
    assert len(answers) == 90
    assert answers == ours


def test_the_largest_layer_is_a_module_with_its_bias() -> None:
    """An MLP's first layer of 4h x h and 4h where the vocabulary is small, else an embedding."""
    assert largest_layer_parameters(WIDE) == 4 * 512 * 512 + 4 * 512
    assert largest_layer_parameters(TIED) == 5000 * 512


def test_stages_without_an_estimator_are_read_as_stage_2() -> None:
    model = preset("gpt2")
    assert deepspeed_estimate(model, plan(1), 4) == deepspeed_estimate(model, plan(2), 4)
    assert deepspeed_estimate(model, plan(0), 4).device_bytes == 20 * model.num_parameters
    assert deepspeed_estimate(model, plan(0, precision="fp32"), 4).device_bytes == 20 * model.num_parameters


@pytest.mark.parametrize(("stage", "gigabytes"), [(0, 120), (1, 31.4), (2, 16.6), (3, 1.9)])
def test_the_plain_formula_gives_the_figure_of_the_zero_paper(stage: int, gigabytes: float) -> None:
    """Figure 1: Ψ = 7.5B, N = 64, K = 12."""
    found = plain_formula(plan(stage), 7_500_000_000, 64)
    assert found.device_bytes / 1e9 == pytest.approx(gigabytes, abs=0.05)
    assert found.host_bytes is None


@pytest.mark.parametrize(
    ("precision", "optimizer", "states", "whole"),
    [("bf16", "adamw", 12, 16), ("fp32", "adamw", 8, 16), ("fp16", "lion", 8, 12), ("bf16", "sgd", 4, 8)],
)
def test_the_plain_formula_knows_precision_and_optimizer(
    precision: str, optimizer: str, states: int, whole: int
) -> None:
    asked = plan(0, precision=precision, optimizer=optimizer)
    assert states_per_parameter(asked) == states
    assert plain_formula(asked, 100, 4).device_bytes == whole * 100


def test_what_is_offloaded_leaves_the_plain_formula() -> None:
    assert plain_formula(plan(1, CPU), 100, 4).device_bytes == 200
    assert plain_formula(plan(3, CPU), 100, 4).device_bytes == 50
    assert plain_formula(plan(3, PARAM), 100, 4).device_bytes == 350
    assert plain_formula(plan(3, CPU_BOTH), 100, 4).device_bytes == 0
