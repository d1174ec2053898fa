"""Random configurations, the same for the same seed: everything that the formulas take, mixed."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from dsplan.errors import InputError
from dsplan.kernels import kernels_of
from dsplan.model import ModelShape
from dsplan.plan import Plan
from dsplan.walk import walk
from dsplan.workload import CheckpointOptions, Workload
from dsplan.zero import OffloadOptimizer, OffloadParam, ZeroConfig

WORLD_SIZES = (1, 2, 3, 4, 6, 7, 8, 12, 16, 64, 256, 1024)
HEAD_SIZES = (16, 32, 64, 100)
VOCABULARIES = (128, 1000, 10_007, 50_257)
#: Width and heads of well-known models, up to those of 100 billion parameters (with few of their layers).
KNOWN_WIDTHS = ((768, 12), (1280, 20), (1600, 25), (2048, 16), (4096, 32), (6144, 48), (12_288, 96))
NVME_PATH = "/tmp"  # no file is written: a dry run's asynchronous reads and writes do nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One configuration: what is trained, how, and on how many ranks."""

    name: str
    model: ModelShape
    plan: Plan
    world_size: int


def cases(count: int, seed: int, optimizer: str = "") -> Iterator[Case]:
    """``count`` configurations that make sense and that the formulas accept.

    ``optimizer``: the same draws with one optimizer for all, which the grid of all others leaves out.
    """
    draw = random.Random(seed)
    made = 0
    while made < count:
        try:
            case = _case(draw, f"{optimizer}{seed}-{made}")
            if optimizer:
                case = _with_optimizer(case, optimizer)
            walk(case.model, case.plan, case.world_size, kernels_of(None), rank=0)
        except InputError:
            continue
        made += 1
        yield case


def _with_optimizer(case: Case, optimizer: str) -> Case:
    workload = replace(case.plan.workload, optimizer=optimizer)
    return replace(case, plan=replace(case.plan, workload=workload, torch_adam=False))


def _case(draw: random.Random, name: str) -> Case:
    model = _model(draw)
    zero = _zero(draw, model)
    workload = _workload(draw, model, zero)
    torch_adam = workload.optimizer in {"adam", "adamw"} and not zero.offloads_optimizer and draw.random() < 0.3
    if zero.offload_optimizer.ratio < 1 and workload.optimizer not in {"adam", "adamw"}:
        raise InputError("offload_optimizer.ratio: below 1 DeepSpeed takes Adam only")  # stage3.py __init__
    plan = Plan(
        name=name,
        workload=workload,
        zero=zero,
        torch_adam=torch_adam,
        checkpointing=_checkpointing(draw, model, workload),
        torch_autocast=_autocast(draw, workload),
    )
    return Case(name=name, model=model, plan=plan, world_size=draw.choice(WORLD_SIZES))


def _autocast(draw: random.Random, workload: Workload) -> str | None:
    if workload.precision != "fp32" or workload.communication_data_type is not None or draw.random() < 0.6:
        return None
    return draw.choice(("bf16", "bf16", "fp16"))


def _checkpointing(draw: random.Random, model: ModelShape, workload: Workload) -> CheckpointOptions:
    if workload.activation_checkpointing != "deepspeed" or draw.random() < 0.4:
        return CheckpointOptions()
    partitions = draw.random() < 0.7
    contiguous = partitions and draw.random() < 0.5
    return CheckpointOptions(
        partition_activations=partitions,
        cpu_checkpointing=not partitions or draw.random() < 0.5,
        contiguous_memory_optimization=contiguous,
        number_checkpoints=model.num_layers + draw.choice((0, 0, 2)) if contiguous else None,
    )


def _model(draw: random.Random) -> ModelShape:
    common: dict[str, Any] = {
        "vocab_size": draw.choice(VOCABULARIES),
        "attention": draw.choice(("eager", "sdpa")),
        "activation": draw.choice(("gelu_new", "gelu")),
        "dropout": draw.choice((0.0, 0.1)),
        "tie_word_embeddings": draw.random() < 0.3,
    }
    if draw.random() < 0.3:
        width, heads = draw.choice(KNOWN_WIDTHS)
        return ModelShape(
            num_layers=draw.randint(1, 3),
            hidden_size=width,
            num_attention_heads=heads,
            max_position_embeddings=draw.choice((128, 1024, 2048)),
            **common,
        )
    heads = draw.choice((1, 2, 3, 5, 8))
    return ModelShape(
        num_layers=draw.randint(1, 5),
        hidden_size=heads * draw.choice(HEAD_SIZES),
        num_attention_heads=heads,
        max_position_embeddings=draw.choice((64, 128, 300, 512)),
        **common,
    )


def _workload(draw: random.Random, model: ModelShape, zero: ZeroConfig) -> Workload:
    longest = model.max_position_embeddings
    precision = draw.choice(("bf16", "bf16", "fp16", "fp32"))
    accumulates_in_fp32 = precision != "fp32" and zero.stage > 0 and draw.random() < 0.2
    return Workload(
        micro_batch_size=draw.choice((1, 1, 2, 3, 4, 8, 64)),
        sequence_length=draw.choice((longest, longest, longest // 2, 33)),
        gradient_accumulation_steps=draw.choice((1, 1, 1, 2, 3)),
        precision=precision,
        optimizer=draw.choice(("adamw", "adamw", "adam", "sgd", "lion", "adagrad")),
        activation_checkpointing=draw.choice(("none", "none", "none", "torch", "deepspeed", "deepspeed")),
        grad_accum_dtype="fp32" if accumulates_in_fp32 else None,
        communication_data_type=draw.choice(("fp32", "fp16", "bf16")) if draw.random() < 0.2 else None,
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
        if draw.random() < 0.35:
            options["offload_optimizer"] = _offload_optimizer(draw, stage)
    if stage == 3:
        if draw.random() < 0.25:
            options["offload_param"] = OffloadParam(device="cpu", pin_memory=draw.random() < 0.8)
        options["sub_group_size"] = draw.choice((1_000_000_000, parameters // 2, parameters // 7))
        options["stage3_prefetch_bucket_size"] = draw.choice((50_000_000, parameters // 5, 10_000, 0))
        options["stage3_param_persistence_threshold"] = draw.choice((100_000, 10_000, 0))
        options["stage3_max_live_parameters"] = draw.choice((1_000_000_000, parameters // 2, parameters // 8))
        options["stage3_max_reuse_distance"] = draw.choice((1_000_000_000, parameters // 2, 0))
        options["memory_efficient_linear"] = draw.random() < 0.8
        if draw.random() < 0.2:
            options["zero_hpz_partition_size"] = draw.choice((2, 3, 4, 8))
    return ZeroConfig(stage=stage, **options)


def _offload_optimizer(draw: random.Random, stage: int) -> OffloadOptimizer:
    if stage == 3 and draw.random() < 0.2:
        return OffloadOptimizer(device="nvme", nvme_path=NVME_PATH)
    ratio = draw.choice((0.3, 0.7)) if stage == 3 and draw.random() < 0.2 else 1.0
    return OffloadOptimizer(device="cpu", pin_memory=draw.random() < 0.8, ratio=ratio)
