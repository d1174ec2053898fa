"""hpZ: stage 3 with a secondary partition among the ranks of a group."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dsplan.engine.secondary import secondary_elements
from dsplan.errors import InputError
from dsplan.kernels import Kernels
from dsplan.model import ModelShape
from dsplan.plan import Plan
from dsplan.walk import WalkResult, walk
from dsplan.workload import Workload
from dsplan.zero import OffloadParam, ZeroConfig

MODEL = ModelShape(
    num_layers=4, hidden_size=64, num_attention_heads=2, vocab_size=128, max_position_embeddings=64, dropout=0.0
)
KERNELS = Kernels()
WORLD = 8
ZERO = ZeroConfig(
    stage=3,
    reduce_bucket_size=50_000,
    stage3_param_persistence_threshold=0,
    stage3_prefetch_bucket_size=0,
    stage3_max_reuse_distance=0,
)


def walked(zero: ZeroConfig) -> WalkResult:
    plan = Plan(name="mine", zero=zero, workload=Workload(sequence_length=64))
    return walk(MODEL, plan, WORLD, KERNELS, rank=0)


def secondary_bytes(group: int) -> int:
    sizes = [parameter.numel for parameter in MODEL.parameters]
    hpz = replace(ZERO, zero_hpz_partition_size=group)
    return sum(KERNELS.rounded(2 * each) for each in secondary_elements(sizes, hpz, WORLD))


@pytest.mark.parametrize("group", [2, 4, 8])
def test_the_partitions_are_there_after_the_initialisation_and_go_with_the_step(group: int) -> None:
    plain, hpz = walked(ZERO), walked(replace(ZERO, zero_hpz_partition_size=group))
    more = [a.phases for a in hpz.steps], [b.phases for b in plain.steps]
    assert more[0][0]["init"].level_bytes - more[1][0]["init"].level_bytes == secondary_bytes(group)
    for phase in ("forward", "backward"):
        assert more[0][1][phase].level_bytes - more[1][1][phase].level_bytes == secondary_bytes(group)
    assert more[0][1]["step"].level_bytes == more[1][1]["step"].level_bytes


def test_later_forwards_make_them_anew_as_parameters_are_released() -> None:
    plain, hpz = walked(ZERO).steps[-1].phases, walked(replace(ZERO, zero_hpz_partition_size=2)).steps[-1].phases
    more = hpz["forward"].level_bytes - plain["forward"].level_bytes
    # What is still gathered at the turn has none yet: the embedding and the head may be among it.
    assert 0 < more <= secondary_bytes(2)


def test_a_group_of_more_ranks_than_there_are_is_one_of_all() -> None:
    assert secondary_bytes(64) == secondary_bytes(8)


def test_what_does_not_go_together_is_refused() -> None:
    with pytest.raises(InputError, match="3 does not divide the 8 ranks"):
        walked(replace(ZERO, zero_hpz_partition_size=3))
    with pytest.raises(InputError, match="offload_param"):
        walked(replace(ZERO, zero_hpz_partition_size=2, offload_param=OffloadParam(device="cpu")))
    assert walked(replace(ZERO, zero_hpz_partition_size=1)).steps == walked(ZERO).steps
