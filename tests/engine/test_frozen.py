"""What stage 3 gathers of parameters that are not trained."""

from __future__ import annotations

import pytest

from dsplan import api
from dsplan.catalogue import accelerator
from dsplan.engine.coordinators import coordinator_of
from dsplan.engine.frozen import FrozenCoordinator
from dsplan.engine.gathering import GatherStep, gather_steps
from dsplan.errors import InputError
from dsplan.kernels import kernels_of
from dsplan.units import MIB
from dsplan.workload import Workload
from dsplan.zero import ZeroConfig
from tests.families.grid import MODELS, Setting

KERNELS = kernels_of(accelerator("h200"))
ZERO = ZeroConfig(stage=3)


def gathered(setting: Setting, *, own_linear: bool = True) -> tuple[GatherStep, ...]:
    zero = ZeroConfig(stage=3, memory_efficient_linear=own_linear)
    return gather_steps(setting.model, zero, 2, setting.plan.workload, KERNELS)


def net(step: GatherStep) -> int:
    """Bytes that a step gathers and does not give back."""
    passes = sum(sum(change[1] for change in one.changes) + one.leftovers[1] for one in step.passes)
    return passes + step.released + step.persistent + step.invalidated


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("checkpointing", ["none", "torch", "deepspeed"])
def test_a_steady_step_gives_back_what_it_gathers(family: str, checkpointing: str) -> None:
    for variant in ("adapters everywhere", "two layers frozen"):
        setting = Setting(family=family, stage=3, variant=variant, checkpointing=checkpointing, sequence_length=64)
        assert net(gathered(setting)[-1]) == 0


def test_so_do_torchs_own_linear_layers_whose_weights_autograd_keeps() -> None:
    setting = Setting(family="Llama 3", stage=3, variant="adapters of q and v")
    assert net(gathered(setting, own_linear=False)[-1]) == 0


def test_what_a_second_run_gathers_does_not_pile_up_over_the_blocks() -> None:
    """It goes with its own block: seven blocks gather no more at once than three (nothing is prefetched)."""
    highest = []
    for layers in (3, 7):
        model = api.model("llama-3.2-1b", num_layers=layers, lora_rank=8)
        workload = Workload(activation_checkpointing="deepspeed")
        first = gather_steps(model, ZERO, 2, workload, KERNELS)[0].passes[0]
        level = 0
        levels = [level := level + change for _, change in first.changes]
        highest.append(max(levels))
    # What stays gathered, norms, is of every block.
    assert highest[0] <= highest[1] < highest[0] + MIB


def test_a_model_of_which_not_all_is_trained_has_a_coordinator_of_its_own() -> None:
    model = Setting(family="Mixtral", stage=3, variant="adapters of q and v").model
    assert coordinator_of(model, ZERO) is FrozenCoordinator
    with pytest.raises(InputError, match="zero_hpz_partition_size: above 1 it is not modelled with parameters"):
        coordinator_of(model, ZeroConfig(stage=3, zero_hpz_partition_size=2))
