"""What the device computes: what recomputation leaves out, mixtures of experts, weights that nobody trains."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from dsplan.catalogue import accelerator, preset
from dsplan.hardware import Cluster
from dsplan.model import ModelShape
from dsplan.strategies import find_plan, standard_plans
from dsplan.timing.engines import work_of
from dsplan.timing.kernels import Piece, kernels
from dsplan.timing.profiles import shipped
from dsplan.timing.rates import machine
from dsplan.timing.step_time import model_flops, step_time
from dsplan.workload import Workload
from tests.gpu.regret_jobs import capped
from tests.gpu.regret_settings import SETTINGS
from tests.timing import profiles

MODEL = ModelShape(num_layers=4, hidden_size=1024, num_attention_heads=16, attention="sdpa", activation="gelu")
PROFILED = Path(__file__).parents[1] / "data" / "regret_kernels.json"


def block(model: ModelShape, *, own_linear: bool = False) -> Piece:
    return kernels(profiles.profile(), model, Workload(micro_batch_size=8), own_linear=own_linear).block


def test_torch_does_not_compute_again_what_follows_the_last_saved_tensor() -> None:
    bare = replace(MODEL, dropout=0.0)
    last = profiles.profile().linear("bf16", 8 * 1024, 4096, 1024)[0]
    found = block(bare)
    products, _ = found.recomputed("torch")
    assert found.forward_products - products == pytest.approx(last)
    # The mask of dropout comes after the product; DeepSpeed's linear saves when it has multiplied.
    for other in (block(MODEL), block(bare, own_linear=True)):
        assert other.recomputed("torch")[0] == pytest.approx(other.forward_products)
    assert found.recomputed("deepspeed") == (found.forward_products, found.forward_memory)
    assert found.recomputed("none") == (0.0, 0.0)


def test_a_mixture_computes_what_its_tokens_are_routed_to() -> None:
    mixture = preset("mixtral-8x7b")
    assert mixture.decoder is not None
    assert mixture.decoder.experts is not None
    workload = Workload(micro_batch_size=4, sequence_length=2048)
    profile = profiles.profile()
    found = kernels(profile, mixture, workload, own_linear=False).block
    h, f, rows = 4096, 14336, 2 * 4 * 2048
    experts = sum(profile.linear("bf16", rows, i, o)[0] for i, o in ((h, 2 * f), (f, h)))
    dense = preset("llama-3.1-8b")  # the same width, heads and MLP
    plain = kernels(profile, dense, workload, own_linear=False).block
    mlp = sum(profile.linear("bf16", rows // 2, i, o)[0] for i, o in ((h, f), (h, f), (f, h)))
    assert found.forward_products - plain.forward_products == pytest.approx(experts - mlp, rel=0.02)
    # With a few tokens every expert's weights are read all the same.
    few = kernels(profile, mixture, Workload(micro_batch_size=1, sequence_length=16), own_linear=False).block
    assert few.forward_products >= profile.elementwise("copy", "bf16", 8 * 3 * h * f) / 2
    active = model_flops(mixture, 2048) / 6
    assert 12.5e9 < active < 14.5e9  # 12.9B of 46.7B parameters are active (arXiv:2401.04088, section 1), and attention


def test_what_is_frozen_has_no_gradient_and_no_update() -> None:
    whole = preset("llama-3.2-1b")
    assert whole.decoder is not None
    kinds = tuple(tuple(replace(one, trained=False) for one in kind) for kind in whole.decoder.kinds)
    frozen = replace(whole, decoder=replace(whole.decoder, kinds=kinds), config=f"{whole.config} ")  # another model
    workload = Workload(micro_batch_size=2, sequence_length=1024)
    of = machine(accelerator("h200"), profiles.profile())
    cluster = Cluster(accelerator=accelerator("h200"), gpus_per_node=2)
    more, less = (kernels(of.profile, one, workload, own_linear=False).block for one in (whole, frozen))
    assert less.forward_products == more.forward_products
    assert 0.45 < less.backward_products / more.backward_products < 0.65
    plan = find_plan(standard_plans(whole, workload), "zero3")
    all_of_it, part = (work_of(one, plan, cluster, of) for one in (whole, frozen))
    assert part.update_s < 0.4 * all_of_it.update_s
    assert part.reduce_s < 0.4 * all_of_it.reduce_s
    assert part.gather_forward_s == pytest.approx(all_of_it.gather_forward_s)  # frozen parameters are gathered too
    assert model_flops(frozen, 1024) < 0.85 * model_flops(whole, 1024)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_the_device_was_as_busy_as_predicted(number: int) -> None:
    """Steps on an H200 under torch's profiler (``tests.gpu.regret_kernels``), by the profile that ships."""
    case = json.loads(PROFILED.read_text(encoding="utf-8"))["cases"][number]
    setting = next(one for one in SETTINGS if one.name == case["setting"])
    plan = next(one for one in setting.plans(case["micro_batch_size"]) if one.name == case["strategy"])
    profile, model = shipped("h200"), setting.model_shape()
    assert profile is not None
    of = machine(accelerator("h200"), profile)
    found = kernels(profile, model, plan.workload, own_linear=False)
    pieces, layers = (found.embedding, found.head), model.num_layers
    again = sum(found.block.recomputed(plan.workload.activation_checkpointing))
    work = work_of(model, plan, capped(setting), of)
    forward = sum(one.forward for one in pieces) + layers * found.block.forward
    backward = sum(one.backward for one in pieces) + layers * (found.block.backward + again)
    backward += work.kernels_s(boundary=True)
    assert forward == pytest.approx(case["profiled"]["forward"]["busy_s"], rel=0.06)
    assert backward == pytest.approx(case["profiled"]["backward"]["busy_s"], rel=0.06)
    whole = step_time(model, plan, capped(setting), of)
    assert whole.seconds == pytest.approx(case["seconds"], rel=0.15)  # the host was another, and slower
