"""What DeepSpeed's engine costs on the host: steps of a model so small that the device has nothing to do.

Two depths give the time of a block and the time of all the rest; every strategy, because hooks differ. All engines are
built first and take turns then, so that a slow second of the machine falls on a few steps of each and not on all of
one; the median of a phase's steps counts. Building them takes longer than their steps, most of it in Python's collector
of garbage, which looks at all that torch and DeepSpeed have made: what is there after the first engine is frozen.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Iterator
from dataclasses import replace

import torch

from dsplan.dsconfig.emit import emit
from dsplan.hardware import Cluster
from dsplan.model import ModelShape
from dsplan.strategies import find_plan, standard_plans
from dsplan.timing.host import RELEASED
from dsplan.workload import Workload
from runner.calibrate_kernels import Bench, Row
from runner.timed_engine import StepTimes, TimedEngine

DEPTHS = (2, 10)
#: Turns that each engine takes at least (the first does not count) and at most, and seconds after which none begins.
_FEWEST, _TURNS, _TURNS_S = 3, 6, 12.0
_LENGTH, _WIDTH, _VOCABULARY = 32, 64, 64
_STAGES = ("zero0", "zero1", "zero2", "zero3")
#: Of stages 0 to 2, which leave recomputation to the model, two; of stage 3, whose hooks it runs through, itself.
_RECOMPUTED = ("zero0", "zero2", "zero3")
_BASE = ("zero0", "sdpa", "gelu")
_RELEASING = RELEASED.removeprefix("zero3")
#: Parameters on the host have the hooks of the optimizer on the host (``dsplan.timing.host`` takes one for the other).
_OFFLOADED = ("zero2-offload", "zero3-offload")


def engine_steps(bench: Bench, world_size: int) -> Iterator[Row]:
    """Seconds of forward, backward and step, by strategy, kind of attention and activation, and depth.

    The first engine of a process imports and compiles, and is not counted. Strategies and recomputation are measured
    however late it is; what other operators add comes last, and as far as the time goes. Ranks take the same turns:
    where there are several they agree on whether there is time for another.
    """
    _first(bench, world_size)
    gc.collect()
    gc.freeze()  # a run has one engine; what others have made would make its collections longer
    timed: list[_Timed] = []
    try:
        for needed, case in _cases(alone=world_size == 1):
            if not needed and bench.out_of_time:
                print(f"engine: no time for {' and '.join(case)}", flush=True)  # noqa: T201
                continue
            timed += [_Timed(bench, world_size, *case, depth) for depth in DEPTHS]
        gc.collect()
        gc.freeze()
        ending = min(bench.deadline, time.monotonic() + _TURNS_S)
        for turn in range(2 if bench.small else _TURNS):
            if turn >= _FEWEST and _any_rank(bench, time.monotonic() > ending, world_size):
                break
            for one in timed:
                one.turn()
    finally:
        gc.unfreeze()
        for one in timed:
            one.engine.close()
    yield from (one.row() for one in timed)


def _first(bench: Bench, world_size: int) -> None:
    """An engine that takes a few steps and goes."""
    first = _Timed(bench, world_size, *_BASE, DEPTHS[0])
    first.turn()
    first.engine.close()


def _any_rank(bench: Bench, value: bool, world_size: int) -> bool:
    """Whether ``value`` holds on any rank."""
    if world_size == 1:
        return value
    flag = torch.tensor([int(value)], device=bench.device.torch_device())
    torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
    return bool(flag.item())


def _cases(*, alone: bool) -> Iterator[tuple[bool, tuple[str, str, str]]]:
    """Whether a prediction needs it, and (strategy, attention, activation).

    What recomputation and other operators add does not depend on the ranks.
    """
    for strategy in (*_STAGES, RELEASED, *_OFFLOADED):
        yield True, (strategy, "sdpa", "gelu")
    if alone:
        for stage in _RECOMPUTED:
            yield True, (f"{stage}-ckpt", "sdpa", "gelu")
        yield False, ("zero0", "eager", "gelu")
        yield False, ("zero0", "sdpa", "gelu_new")


class _Timed:
    """One engine and the times of the steps that it has taken."""

    def __init__(
        self, bench: Bench, world_size: int, strategy: str, attention: str, activation: str, depth: int
    ) -> None:
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
        plans = standard_plans(model, Workload(sequence_length=_LENGTH, precision=precision))
        plan = find_plan(plans, strategy.removesuffix(_RELEASING))
        if strategy == RELEASED:
            plan = replace(plan, zero=replace(plan.zero, stage3_max_reuse_distance=0))
        checkpointing = plan.workload.activation_checkpointing
        self.engine = TimedEngine(
            model.to_config(),
            emit(plan, model, Cluster(gpus_per_node=world_size)),
            checkpointing=checkpointing,
            device=bench.device,
            collect=False,
        )
        self._of: Row = {
            "strategy": strategy.removesuffix("-ckpt"),
            "checkpointing": checkpointing,
            "attention": attention,
            "activation": activation,
            "world_size": world_size,
            "num_layers": depth,
        }
        self._times: list[StepTimes] = []

    def turn(self) -> None:
        """Take a step without a wait between its phases and one with; before the first turn also two that warm up."""
        self._times.append(self.engine.time(1, _LENGTH, warmup=0 if self._times else 2, steps=1))

    def row(self) -> Row:
        """The medians over the turns; the first is left out, after which stage 3 prefetches."""
        counted = self._times[1:] or self._times
        phases = ("seconds", "forward_s", "backward_s", "step_s")
        return {**self._of, **{phase: statistics.median(getattr(one, phase) for one in counted) for phase in phases}}
