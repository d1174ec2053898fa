"""Trace: what one rank of a plan asks of its device, request by request, from the walk.

The walk adds up; here each request is written down with its stream, and each release with the request that it
returns, so that ``dsplan.allocator`` can replay them. Sizes are what the program asks for, rounded up to 512 bytes;
what the allocator makes of them is the allocator's affair.
"""

from __future__ import annotations

from collections import deque

from dsplan.engine import Run
from dsplan.engine.checkpoints import Offloaded
from dsplan.engine.chosen_leaves import with_chosen_leaf
from dsplan.engine.secondary import secondary_elements
from dsplan.engine.stage3 import Stage3
from dsplan.kernels import Kernels
from dsplan.model import ModelShape
from dsplan.plan import Plan
from dsplan.units import round_up
from dsplan.verdict.gathers import gathers
from dsplan.verdict.operations import Trace
from dsplan.verdict.recorder import BLOCK_BYTES, COMPUTE, GATHER, REDUCE, RESTORE, Recorder
from dsplan.verdict.requests import Numbered, Placed
from dsplan.walk import Walk

#: Steps that are walked from the first one on that all later ones repeat: what one leaves to the next shows then.
WALKED = 3
#: Steps of a trace: what a step leaves behind can be too small, or too divided, for the next. Of 44 settings
#: (tests/gpu/ladder_settings.py) all need as much after eight steps as after fourteen, but for 0.2 % of one.
NUM_STEPS = 8


def trace(
    model: ModelShape,
    plan: Plan,
    world_size: int,
    kernels: Kernels,
    *,
    rank: int,
    capacity_bytes: int | None = None,
    num_steps: int = NUM_STEPS,
    skipped: int = 0,
) -> Trace:
    """What ``rank`` asks for while the model is built and ``num_steps`` steps are taken.

    Args:
        kernels: of the device.
        capacity_bytes: as for :func:`dsplan.walk.walk`.
        skipped: so many steps at first update nothing, until the loss scale of fp16 has settled.
    """
    model = with_chosen_leaf(model, plan.zero)
    plain = Numbered.of(kernels)
    recorder = Recorder(plain)
    run = Run(
        model=model,
        plan=plan,
        world_size=world_size,
        kernels=plain,
        ledger=recorder,
        rank=rank,
        capacity_bytes=capacity_bytes,
    )
    walk = Walk(run)
    engine, zero = walk.engine, plan.zero
    recorder.masks_after = _masks_after(model)
    recorder.empties = zero.stage > 0 and not plan.ddp
    repeats_from = engine.num_steps - 1 + skipped
    recorder.skipped = skipped
    recorder.follow(engine)
    engine.sizes = Placed.of(engine.sizes)
    if isinstance(engine, Stage3):
        secondary = secondary_elements(engine.sizes, zero, world_size)
        recorder.secondary = frozenset([round_up(engine.e * each, BLOCK_BYTES) for each in secondary])
    walked = engine.num_steps = min(num_steps, repeats_from + WALKED)
    if isinstance(engine, Stage3):
        _listen(engine, recorder)
        engine.gathers = (*engine.gathers, *engine.gathers[-1:] * walked)[:walked]
        recorder.gathers = deque(gathers(model, zero, world_size, plan.workload, plain, walked))
    if zero.stage > 0 and zero.overlaps_communication and not plan.ddp:
        recorder.gather_stream = GATHER if isinstance(engine, Stage3) else COMPUTE
        recorder.reduce_stream = REDUCE
    if isinstance(walk.checkpoints, Offloaded):
        recorder.restore_stream = RESTORE
    walk.take()
    recorder.repeat(num_steps - walked)
    return Trace(
        recorder.operations,
        recorder.terms,
        recorder.moments,
        tuple(recorder.starts),
        repeats_from,
        recorder.ahead.kept,
        tuple(recorder.ahead.waits),
    )


def _listen(engine: Stage3, recorder: Recorder) -> None:
    """Tell ``recorder`` when ``engine`` reduces a bucket, before which it waits for earlier ones."""
    reduce = engine._reduce_bucket

    def listened() -> None:
        if engine._bucket:
            recorder.ahead.before_reduction(len(recorder.operations))
            reduce()
            recorder.ahead.after_reduction(len(recorder.operations))

    vars(engine)["_reduce_bucket"] = listened


def _masks_after(model: ModelShape) -> frozenset[int]:
    """Indices of the parameters after which a causal mask follows when a model is moved: the last of an attention."""
    if not model.has_mask_buffer:
        return frozenset()
    names = [parameter.name for parameter in model.parameters]
    pairs = zip(names, [*names[1:], ""], strict=True)
    return frozenset(index for index, (name, after) in enumerate(pairs) if ".attn." in name and ".attn." not in after)
