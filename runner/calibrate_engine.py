"""What DeepSpeed's engine costs on the host: steps of a model so small that the device has nothing to do.

Two depths give the time of a block and the time of all the rest; every strategy, because hooks differ.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

from dsplan.dsconfig.emit import emit
from dsplan.hardware import Cluster
from dsplan.model import ModelShape
from dsplan.strategies import find_plan, standard_plans
from dsplan.workload import Workload
from runner.calibrate_kernels import Bench, Row
from runner.timed_engine import TimedEngine

DEPTHS = (2, 8)
_REPEATS = 6
_LENGTH, _WIDTH, _VOCABULARY = 32, 64, 64
_STAGES = ("zero0", "zero1", "zero2", "zero3")
_BASE = ("zero0", "sdpa", "gelu")
_OFFLOADED = ("zero2-offload", "zero3-offload", "zero3-offload-param")


def engine_steps(bench: Bench, world_size: int) -> Iterator[Row]:
    """Seconds of forward, backward and step, by strategy, kind of attention and activation, and depth.

    The first engine of a process imports and compiles; it is not counted, neither in a row nor against the deadline.
    """
    begun = time.monotonic()
    _steps(bench, world_size, *_BASE, DEPTHS[0])
    bench = replace(bench, deadline=bench.deadline + time.monotonic() - begun)
    for strategy, attention, activation in _cases(alone=world_size == 1):
        for depth in DEPTHS:
            if bench.out_of_time:
                return
            yield _steps(bench, world_size, strategy, attention, activation, depth)


def _cases(*, alone: bool) -> Iterator[tuple[str, str, str]]:
    """(strategy, attention, activation): what recomputation and other operators add does not depend on the ranks."""
    for strategy in _STAGES:
        yield strategy, "sdpa", "gelu"
    for strategy in _OFFLOADED:
        yield strategy, "sdpa", "gelu"
    if alone:
        for stage in _STAGES:
            yield f"{stage}-ckpt", "sdpa", "gelu"
        yield "zero0", "eager", "gelu"
        yield "zero0", "sdpa", "gelu_new"


def _steps(bench: Bench, world_size: int, strategy: str, attention: str, activation: str, depth: int) -> Row:
    model = ModelShape(
        num_layers=depth,
        hidden_size=_WIDTH,
        num_attention_heads=1,
        vocab_size=_VOCABULARY,
        max_position_embeddings=_LENGTH,
        attention=attention,
        activation=activation,
        dropout=0.1,
    )
    precision = "fp32" if bench.small else "bf16"
    plan = find_plan(standard_plans(model, Workload(sequence_length=_LENGTH, precision=precision)), strategy)
    checkpointing = plan.workload.activation_checkpointing
    engine = TimedEngine(
        model.to_config(),
        emit(plan, model, Cluster(gpus_per_node=world_size)),
        checkpointing=checkpointing,
        device=bench.device,
    )
    try:
        times = [engine.time(1, _LENGTH, warmup=2, steps=1)]
        times += [engine.time(1, _LENGTH, warmup=0, steps=1) for _ in range(1 if bench.small else _REPEATS)]
    finally:
        engine.close()
    return {
        "strategy": strategy.removesuffix("-ckpt"),
        "checkpointing": checkpointing,
        "attention": attention,
        "activation": activation,
        "world_size": world_size,
        "num_layers": depth,
        # What else happens on the machine makes a step longer, never shorter.
        "seconds": min(one.seconds for one in times),
        "forward_s": min(one.forward_s for one in times),
        "backward_s": min(one.backward_s for one in times),
        "step_s": min(one.step_s for one in times),
    }
