"""Which engine a run with Muon has, and what of Muon the formulas do not have.

Source: DeepSpeed 0.19.8 runtime/engine.py (_configure_basic_optimizer, _do_optimizer_sanity_check).
"""

from __future__ import annotations

from dsplan.engine.base import Engine, Run
from dsplan.engine.leaves import leaf_of
from dsplan.engine.muon_groups import worst_ranks_of_groups
from dsplan.engine.muon_offload3 import MuonOffload3
from dsplan.engine.muon_offload12 import MuonOffload12
from dsplan.engine.muon_stage0 import MuonStage0Plain, MuonStage0Unfused
from dsplan.engine.muon_stage3 import MuonStage3, worst_ranks_of_rounds
from dsplan.engine.muon_stage12 import MuonStage12
from dsplan.engine.stage3_frozen import Stage3Frozen
from dsplan.engine.stage3_leaves import Stage3Leaves
from dsplan.engine.trained import all_trained
from dsplan.errors import InputError
from dsplan.model import ModelShape
from dsplan.plan import Plan

STAGE_3 = 3
ELSEWHERE = "a dry run knows it: dsplan verify --device fake"


def muon_engine(run: Run) -> Engine:
    """The engine of ``run``, whose optimizer is Muon.

    Raises:
        InputError: DeepSpeed refuses it, or the formulas do not have it; by name.
    """
    require_modelled(run)
    offloads = run.plan.zero.offloads_optimizer
    if run.plan.zero.stage == STAGE_3:
        return _stage3(run, offloads=offloads)
    if run.plan.zero.stage:
        return MuonOffload12(run) if offloads else MuonStage12(run)
    return MuonStage0Plain(run) if run.element_bytes == 4 else MuonStage0Unfused(run)


def _stage3(run: Run, *, offloads: bool) -> Engine:
    if not all_trained(run.model):
        return _OffloadFrozen(run) if offloads else _Frozen(run)
    if leaf_of(run.model):
        return _OffloadLeaves(run) if offloads else _Leaves(run)
    return MuonOffload3(run) if offloads else MuonStage3(run)


class _Leaves(MuonStage3, Stage3Leaves):
    pass


class _OffloadLeaves(MuonOffload3, Stage3Leaves):
    pass


class _Frozen(MuonStage3, Stage3Frozen):
    pass


class _OffloadFrozen(MuonOffload3, Stage3Frozen):
    pass


def muon_ranks(model: ModelShape, plan: Plan, world_size: int) -> tuple[int, ...]:
    """The ranks of which one is the worst: at stage 0, and with stage 3's optimizer on the CPU, all are alike."""
    zero = plan.zero
    if zero.stage in (1, 2):
        return worst_ranks_of_groups(model, world_size, round_robin=zero.round_robin_gradients)
    if zero.stage == STAGE_3 and not zero.offloads_optimizer:
        return worst_ranks_of_rounds(model, zero, world_size)
    return (0,)


def require_modelled(run: Run) -> None:
    """Refuse what the formulas of Muon leave out.

    Raises:
        InputError: states on a drive or partly on the device, autocast; gradients accumulated in another dtype than the
            model's in stages 0 to 2.
    """
    workload = run.plan.workload
    if workload.grad_accum_dtype is not None and run.plan.zero.stage != STAGE_3:
        raise InputError(
            f"data_types.grad_accum_dtype: {workload.grad_accum_dtype} with Muon in {workload.precision} is modelled "
            f"at stage 3 only; {ELSEWHERE}"
        )
    for key in ("offload_optimizer", "offload_param"):
        if getattr(run.plan.zero, key).device == "nvme":
            raise InputError(f"{key}.device: nvme with Muon is not modelled; {ELSEWHERE}")
    if run.plan.zero.offload_optimizer.ratio < 1:
        raise InputError("offload_optimizer.ratio: below 1 DeepSpeed takes Adam only")  # stage3.py __init__
    if run.plan.torch_autocast is not None:
        raise InputError(f"torch_autocast: is not modelled with Muon; {ELSEWHERE}")
