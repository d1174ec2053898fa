"""engine: DeepSpeed's engines as sequences of allocations, one file per family of stages; and torch's DDP."""

from __future__ import annotations

from dataclasses import replace

from dsplan.activations import Programs, programs
from dsplan.engine.base import Engine, Run
from dsplan.engine.identity import output_by_size
from dsplan.engine.stage0 import Stage0Flat, Stage0Plain, Stage0Unfused
from dsplan.engine.stage12 import Stage12
from dsplan.engine.trained import all_trained
from dsplan.errors import InputError
from dsplan.kernels import Kernels
from dsplan.model import ModelShape
from dsplan.optimizers import device_optimizer
from dsplan.partition import worst_ranks
from dsplan.plan import Plan
from dsplan.workload import CheckpointOptions

STAGE_2, STAGE_3 = 2, 3
MUON = "muon"

__all__ = ["Engine", "Run", "candidate_ranks", "engine_for", "programs_for", "uncovered"]


def candidate_ranks(model: ModelShape, plan: Plan, world_size: int) -> tuple[int, ...]:
    """The ranks that have to be walked to find the worst: all are alike but in stages 1 and 2."""
    if plan.workload.optimizer == MUON:
        from dsplan.engine.muon import muon_ranks

        return muon_ranks(model, plan, world_size)
    if plan.zero.stage in (1, 2):
        return worst_ranks(model, world_size, plan.zero.round_robin_gradients)
    return (0,)


def engine_for(run: Run) -> Engine:
    """The engine that DeepSpeed would choose (engine.py _do_optimizer_sanity_check); DDP has its own."""
    if run.plan.ddp:
        from dsplan.engine.ddp import Ddp

        return Ddp(run)
    stage = run.plan.zero.stage
    if run.plan.workload.optimizer == MUON:
        from dsplan.engine.muon import muon_engine

        return muon_engine(run)
    if stage == STAGE_3:
        return _stage3(run)
    return _stage12(run) if stage else _stage0(run)


def _stage3(run: Run) -> Engine:
    from dsplan.engine.leaves import leaf_of
    from dsplan.engine.stage3 import Stage3
    from dsplan.engine.stage3_frozen import Stage3Frozen
    from dsplan.engine.stage3_leaves import Stage3Leaves

    if not all_trained(run.model):
        return Stage3Frozen(run)
    return Stage3Leaves(run) if leaf_of(run.model) else Stage3(run)


def _stage0(run: Run) -> Engine:
    if run.plan.workload.grad_accum_dtype is not None:
        raise InputError(
            "data_types.grad_accum_dtype: stage 0 accumulates gradients in the model's dtype only; DeepSpeed refuses "
            f"{run.plan.workload.grad_accum_dtype} with {run.plan.workload.precision}"
        )
    if run.element_bytes == 4:
        return Stage0Plain(run)
    return Stage0Flat(run) if device_optimizer(run.plan).fused else Stage0Unfused(run)


def _stage12(run: Run) -> Engine:
    """Gradients accumulated in another dtype than the model's have engines of their own."""
    workload = run.plan.workload
    if workload.grad_accum_dtype is None:
        return Stage12(run)
    if workload.grad_accum_dtype == "fp32" and run.plan.zero.stage == STAGE_2:
        from dsplan.engine.stage2_fp32 import Stage2Fp32

        return Stage2Fp32(run)
    if workload.grad_accum_dtype == "fp32" and workload.precision == "bf16" and not run.plan.zero.offloads_optimizer:
        from dsplan.engine.bf16 import Bf16

        return Bf16(run)
    if workload.grad_accum_dtype == "fp32":
        from dsplan.engine.stage1_fp32 import Stage1Fp32

        return Stage1Fp32(run)
    raise InputError(
        f"data_types.grad_accum_dtype: {workload.grad_accum_dtype} at stage {run.plan.zero.stage} with "
        f"{workload.precision} is not modelled yet"
    )


def uncovered(model: ModelShape, plan: Plan) -> str | None:
    """What of ``plan`` the formulas have for minGPT only, where ``model`` is a decoder; None where they have it."""
    if model.decoder is None:
        return None
    if plan.torch_autocast is not None:
        return "torch_autocast with this model"
    if plan.checkpointing != CheckpointOptions():
        return "options of DeepSpeed's activation checkpointing with this model"
    return None


def require_autocast(run: Run) -> None:
    """Refuse what is not modelled with ``torch_autocast``.

    Raises:
        InputError: a decoder; torch's linear layers at stage 3.
    """
    if run.model.decoder is not None:
        raise InputError(
            f"torch_autocast: modelled for minGPT only; a dry run knows {run.model.model_type}: "
            "dsplan verify --device fake"
        )
    if run.plan.zero.stage == STAGE_3 and not run.plan.zero.memory_efficient_linear:
        raise InputError("torch_autocast: at stage 3 it is modelled with memory_efficient_linear only, its default")


def programs_for(run: Run, kernels: Kernels) -> Programs:
    """What the model runs on ``kernels``: under autocast where the plan asks for it.

    Raises:
        InputError: a decoder under autocast, or another that the formulas do not cover.
    """
    found = _programs_for(run, kernels)
    if run.plan.checkpointing == CheckpointOptions() or run.model.decoder is not None:
        return found
    # What blocks are given goes and comes back between them (engine/checkpoints.py).
    return replace(found, embedding=output_by_size(found.embedding), block=output_by_size(found.block))


def _programs_for(run: Run, kernels: Kernels) -> Programs:
    if run.plan.torch_autocast is not None:
        from dsplan.engine.autocast import autocast_programs

        require_autocast(run)
        lowered = replace(run.plan.workload, precision=run.plan.torch_autocast)
        return autocast_programs(run.model, lowered, kernels)
    if run.plan.ddp and run.element_bytes != 4:
        from dsplan.engine.autocast import autocast_programs

        return autocast_programs(run.model, run.plan.workload, kernels)
    if run.plan.zero.stage == STAGE_3:
        return programs(run.model, run.plan.workload, kernels)
    return programs(run.model, run.plan.workload, kernels, modules=False)
