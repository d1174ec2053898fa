"""How big it can get, and sweeps."""

from __future__ import annotations

import csv
import io
from dataclasses import replace

import pytest

from dsplan.catalogue import accelerator, preset
from dsplan.errors import InputError
from dsplan.hardware import Cluster
from dsplan.records import mistakes
from dsplan.report.fit import fit_document
from dsplan.report.sweep import COLUMNS, sweep_csv, sweep_document, sweep_picture
from dsplan.search.fit import TOKENS, largest
from dsplan.search.memory import weigh
from dsplan.search.space import with_batch
from dsplan.search.sweep import sweep
from dsplan.strategies import ddp_plans, find_plan, standard_plans
from dsplan.workload import Workload
from tests.timing.profiles import profile

GPT2 = preset("gpt2")
CLUSTER = Cluster(accelerator=accelerator("t4"), gpus_per_node=2, host_memory_bytes=2**38)
PLANS = [find_plan(standard_plans(GPT2, Workload(precision="fp16")), name) for name in ("zero0", "zero2-ckpt")]


def test_the_largest_fits_and_one_more_does_not() -> None:
    for row, plan in zip(largest("micro-batch", GPT2, PLANS, CLUSTER), PLANS, strict=True):
        assert row.value > 0
        assert weigh(GPT2, with_batch(plan, row.value, 1), CLUSTER).fits
        assert not weigh(GPT2, with_batch(plan, row.value + 1, 1), CLUSTER).fits
        assert weigh(GPT2, with_batch(plan, row.at_best, 1), CLUSTER).headroom_bytes >= 0
        assert weigh(GPT2, with_batch(plan, row.at_best + 1, 1), CLUSTER).headroom_bytes < 0
    for row, plan in zip(largest("model", GPT2, PLANS, CLUSTER), PLANS, strict=True):
        assert weigh(replace(GPT2, num_layers=row.value), plan, CLUSTER).fits
        assert not weigh(replace(GPT2, num_layers=row.value + 1), plan, CLUSTER).fits
        assert row.num_parameters == replace(GPT2, num_layers=row.value).num_parameters


def test_a_sequence_grows_by_whole_steps() -> None:
    (row, _) = largest("sequence", GPT2, PLANS, CLUSTER)
    assert row.value % TOKENS == 0
    assert row.value > 1024


def test_partitioning_and_offload_make_larger_models_possible() -> None:
    bench = preset("1.7B")
    on = Cluster(accelerator=accelerator("a100-40gb"), gpus_per_node=8, host_memory_bytes=10**12)
    workload = Workload(precision="fp16", sequence_length=128)
    plans = standard_plans(bench, workload)
    names = ("zero1", "zero2", "zero3")
    rows = largest("model", bench, [*ddp_plans(workload)[:1], *(find_plan(plans, name) for name in names)], on)
    sizes = [row.num_parameters for row in rows]
    assert sizes == sorted(sizes)
    assert sizes[0] < 2e9
    assert sizes[-1] > 12e9
    assert mistakes("fit", fit_document("model", bench, on, rows)) == []


def test_what_does_not_fit_at_all_is_none_with_a_reason() -> None:
    small = replace(CLUSTER, accelerator=replace(accelerator("t4"), memory_bytes=2**30))
    (row, _) = largest("model", preset("1.7B"), [replace(plan) for plan in PLANS], small)
    assert row.value == row.at_best == 0
    assert row.weight.why.startswith("the device is short by")


def test_without_a_device_nothing_can_be_said() -> None:
    with pytest.raises(InputError, match="name one with --gpu"):
        largest("model", GPT2, PLANS, Cluster())


def test_a_sweep_has_every_combination_in_order() -> None:
    devices = [accelerator("t4"), accelerator("gaudi2")]
    points = list(
        sweep(
            GPT2, PLANS, CLUSTER, gpus=[1, 2], accelerators=devices, micro_batch_sizes=[1, 2], sequence_lengths=[256],
            profile=None, timed=False,
        )
    )  # fmt: skip
    assert len(points) == 2 * 2 * 2 * 2
    assert all(point.time is None for point in points)
    assert [point.cluster.gpus_per_node for point in points[:8]] == [1] * 4 + [2] * 4
    rows = list(csv.DictReader(io.StringIO(sweep_csv(points))))
    assert len(rows) == len(points)
    assert tuple(rows[0]) == COLUMNS
    assert mistakes("sweep", sweep_document(GPT2, points)) == []


def test_times_are_there_with_a_profile_and_memory_without() -> None:
    points = list(
        sweep(
            GPT2, PLANS, CLUSTER, gpus=[2], accelerators=[accelerator("h100")], micro_batch_sizes=[4],
            sequence_lengths=[512, 1024], profile=profile(),
        )
    )  # fmt: skip
    assert all(point.time is not None and point.time.tokens_per_s > 0 for point in points)
    assert sweep_picture(GPT2, points).count("<circle") == len(points) + 2
    with pytest.raises(InputError, match="2048 tokens are more than the model's 1024 positions"):
        list(
            sweep(
                GPT2, PLANS, CLUSTER, gpus=[1], accelerators=[accelerator("h100")], micro_batch_sizes=[1],
                sequence_lengths=[2048], timed=False,
            )
        )  # fmt: skip
