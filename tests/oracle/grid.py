"""Random configurations, the same for the same seed: everything that the formulas take, mixed."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from dsplan.errors import InputError
from dsplan.model import ModelShape
from dsplan.plan import Plan
from dsplan.prediction import predict
from dsplan.workload import Workload
from dsplan.zero import OffloadOptimizer, OffloadParam, ZeroConfig

WORLD_SIZES = (1, 2, 3, 4, 6, 7, 8, 12, 16, 64, 256, 1024)
HEAD_SIZES = (16, 32, 64, 100)
VOCABULARIES = (128, 1000, 10_007, 50_257)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One configuration: what is trained, how, and on how many ranks."""

    name: str
    model: ModelShape
    plan: Plan
    world_size: int


def cases(count: int, seed: int) -> Iterator[Case]:
    """``count`` configurations that make sense and that the formulas accept."""
    draw = random.Random(seed)
    made = 0
    while made < count:
        try:
            case = _case(draw, f"{seed}-{made}")
            predict(case.model, case.plan, None, case.world_size)
        except InputError:
            continue
        made += 1
        yield case


def _case(draw: random.Random, name: str) -> Case:
    model = _model(draw)
    zero = _zero(draw, model)
    workload = _workload(draw, model)
    torch_adam = workload.optimizer in {"adam", "adamw"} and not zero.offloads_optimizer and draw.random() < 0.3
    plan = Plan(name=name, workload=workload, zero=zero, torch_adam=torch_adam)
    return Case(name=name, model=model, plan=plan, world_size=draw.choice(WORLD_SIZES))


def _model(draw: random.Random) -> ModelShape:
    heads = draw.choice((1, 2, 3, 5, 8))
    return ModelShape(
        num_layers=draw.randint(1, 5),
        hidden_size=heads * draw.choice(HEAD_SIZES),
        num_attention_heads=heads,
        vocab_size=draw.choice(VOCABULARIES),
        max_position_embeddings=draw.choice((64, 128, 300, 512)),
        attention=draw.choice(("eager", "sdpa")),
        activation=draw.choice(("gelu_new", "gelu")),
        dropout=draw.choice((0.0, 0.1)),
        tie_word_embeddings=draw.random() < 0.3,
    )


def _workload(draw: random.Random, model: ModelShape) -> Workload:
    longest = model.max_position_embeddings
    return Workload(
        micro_batch_size=draw.choice((1, 1, 2, 3, 4, 8)),
        sequence_length=draw.choice((longest, longest, longest // 2, 33)),
        gradient_accumulation_steps=draw.choice((1, 1, 1, 2, 3)),
        precision=draw.choice(("bf16", "bf16", "fp16", "fp32")),
        optimizer=draw.choice(("adamw", "adamw", "adam", "sgd", "lion", "adagrad")),
        activation_checkpointing=draw.choice(("none", "none", "none", "torch", "deepspeed")),
    )


def _zero(draw: random.Random, model: ModelShape) -> ZeroConfig:
    stage = draw.choice((0, 1, 2, 2, 3, 3, 3))
    parameters = model.num_parameters
    options: dict[str, Any] = {}
    if stage:
        options["reduce_bucket_size"] = draw.choice((500_000_000, parameters // 3, parameters // 10, 50_000))
        options["overlap_comm"] = draw.choice((None, True, False))
        options["contiguous_gradients"] = draw.random() < 0.8
        options["reduce_scatter"] = draw.random() < 0.8
        options["round_robin_gradients"] = draw.random() < 0.2
    pins = draw.random() < 0.8
    if stage in (1, 2, 3) and draw.random() < 0.35:
        options["offload_optimizer"] = OffloadOptimizer(device="cpu", pin_memory=pins)
    if stage == 3:
        if draw.random() < 0.25:
            options["offload_param"] = OffloadParam(device="cpu", pin_memory=pins)
        options["sub_group_size"] = draw.choice((1_000_000_000, parameters // 2, parameters // 7))
        options["stage3_prefetch_bucket_size"] = draw.choice((50_000_000, parameters // 5, 10_000, 0))
        options["stage3_param_persistence_threshold"] = draw.choice((100_000, 10_000, 0))
        options["stage3_max_live_parameters"] = draw.choice((1_000_000_000, parameters // 2, parameters // 8))
        options["stage3_max_reuse_distance"] = draw.choice((1_000_000_000, parameters // 2, 0))
    return ZeroConfig(stage=stage, **options)
