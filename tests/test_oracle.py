"""The formulas against the dry run on sixty random configurations; ``python -m tests.oracle`` takes more of them."""

from __future__ import annotations

import statistics
from dataclasses import replace
from functools import cache

import pytest

pytest.importorskip("deepspeed")

from dsplan.catalogue import accelerator
from dsplan.kernels import kernels_of
from dsplan.model import ModelShape
from dsplan.plan import Plan
from dsplan.units import MIB
from dsplan.walk import walk
from dsplan.workload import Workload
from dsplan.zero import OffloadOptimizer, ZeroConfig
from tests.dry_runs import dry_runs
from tests.oracle.__main__ import describe, run
from tests.oracle.compare import Difference, difference, specification
from tests.oracle.grid import Case, cases

COUNT, SEED, JOBS = 60, 2, 2


@cache
def found() -> tuple[Difference, ...]:
    """The differences; a configuration that cannot be dry-run fails the test."""
    differences = []
    for case, result in run(list(cases(COUNT, SEED)), JOBS):
        assert isinstance(result, Difference), f"{describe(case)}: {result}"
        differences.append(result)
    return tuple(differences)


@pytest.mark.engine
@pytest.mark.timeout(900)
def test_the_peak_is_the_dry_run_s() -> None:
    errors = {each.case.name: each.error_percent for each in found()}
    assert len(errors) == COUNT
    assert statistics.median(map(abs, errors.values())) <= 0.05
    assert {name: error for name, error in errors.items() if not -0.5 <= error <= 1} == {}


@pytest.mark.engine
@pytest.mark.timeout(900)
def test_so_is_the_peak_of_every_phase() -> None:
    phases = [(each, phase) for each in found() for phase in each.phases]
    errors = [abs(phase.error_percent) for _, phase in phases]
    assert statistics.median(errors) <= 0.05
    far = [
        (describe(each.case), phase)
        for each, phase in phases
        if (abs(phase.error_percent) > 2 and abs(phase.peak_error) > 16 * MIB)
        or (phase.error_percent < -1 and phase.peak_error < -8 * MIB)
    ]
    assert far == []


@pytest.mark.engine
@pytest.mark.timeout(900)
def test_host_memory_is_the_dry_run_s() -> None:
    for each in found():
        assert abs(each.predicted_pinned - each.found_pinned) <= max(0.001 * each.found_pinned, 128 * 1024), each.case
        error = each.predicted_pageable - each.found_pageable
        assert abs(error) <= max(0.03 * each.found_pageable, MIB), describe(each.case)


@pytest.mark.engine
@pytest.mark.timeout(120)
def test_a_model_is_flattened_on_the_host_where_the_device_lacks_the_room() -> None:
    """290 MiB of parameters on a card that has 560 MiB for tensors."""
    card = accelerator("t4")
    memory_bytes = 560 * MIB + card.driver_reserve_bytes + card.context_bytes
    small = replace(
        card, memory_bytes=memory_bytes, communication_bytes=0
    )  # which a dry run leaves out of what is free
    model = ModelShape(
        num_layers=3, hidden_size=2048, num_attention_heads=16, vocab_size=128, max_position_embeddings=64
    )
    zero = ZeroConfig(stage=2, reduce_bucket_size=1_000_000, offload_optimizer=OffloadOptimizer(device="cpu"))
    workload = Workload(sequence_length=64, precision="fp16", activation_checkpointing="torch")
    case = Case(name="flat", model=model, world_size=8, plan=Plan(name="flat", zero=zero, workload=workload))
    ((_, record),) = dry_runs({case.name: specification(case, small)}, jobs=1)
    assert not isinstance(record, str), record
    each = difference(case, record, small)
    roomy = walk(model, case.plan, 8, kernels_of(small)).steps[0].peak_bytes
    init = next(phase for phase in each.phases if phase.step == "init")
    assert roomy > 560 * MIB > init.found_peak
    assert abs(init.peak_error) <= 0.001 * init.found_peak
    assert abs(each.error_percent) <= 0.5
    assert abs(each.predicted_pageable - each.found_pageable) <= 0.001 * each.found_pageable
