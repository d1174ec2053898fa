"""The comparison reads well at 80 and 120 columns, with and without colour."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from dsplan.catalogue import accelerator
from dsplan.estimate import Estimate, estimate
from dsplan.hardware import Cluster
from dsplan.model import ModelShape
from dsplan.report.table import print_estimate, verdict_lines
from dsplan.strategies import standard_plans
from dsplan.units import format_bytes
from dsplan.workload import Workload
from dsplan.zero import OffloadOptimizer
from tests.report import estimates


def printed(estimate: Estimate, *, width: int = 80, colour: bool = False, inferred: str | None = None) -> str:
    file = io.StringIO()
    console = Console(file=file, width=width, highlight=False, markup=False, force_terminal=colour)
    print_estimate(console, estimate, inferred=inferred)
    return file.getvalue()


@pytest.mark.parametrize("width", [40, 60, 80, 90, 100, 110, 120])
def test_every_row_is_one_line_and_nothing_is_cut(width: int) -> None:
    text = printed(estimates.hand_made(), width=width)
    assert "…" not in text
    lines = text.splitlines()
    assert max(map(len, lines)) <= max(width, 80)  # a narrower terminal scrolls
    for plan in estimates.hand_made().plans:
        [line] = [line for line in lines if line[2:].startswith(f"{plan.plan.name} ")]
        assert f"{plan.device.peak_bytes / 2**30:.2f}" in line


@pytest.mark.parametrize("width", [110, 150])
def test_the_moment_is_shown_where_no_row_wraps(width: int) -> None:
    made = estimates.hand_made()
    long = "backward of the loss and the head of a model"
    rows = tuple(replace(row, device=replace(row.device, peak_moment=long)) for row in made.plans)
    lines = printed(replace(made, plans=rows), width=width).splitlines()
    assert any(long in line for line in lines) == (width == 150)
    assert len([line for line in lines if line[2:].startswith("zero")]) == len(rows)
    assert not any(line.strip().startswith(("head of", "loss")) for line in lines)


def test_the_widest_row_fits_80_columns() -> None:
    base = estimates.cluster(80, gpus=8)
    [plan] = [
        plan
        for plan in estimates.standard_plans(estimates.MODEL, estimates.hand_made().plans[0].plan.workload)
        if plan.name == "zero3-offload-param-ckpt"
    ]
    row = estimates.row(plan, base, peak_bytes=9999 * 2**30)
    text = printed(
        Estimate(model=estimates.MODEL, cluster=base, plans=(row,), recommended=None, recommendation_reason="too large")
    )
    assert "9,999.0 1st backward" in text
    assert "no -9,920" in text
    assert "…" not in text


def test_the_recommended_row_is_marked_without_colour() -> None:
    text = printed(estimates.hand_made())
    assert "* zero1 " in text
    assert "* Recommended: zero1: no offload and the least communication" in text
    assert "\x1b" not in text
    assert "\x1b" in printed(estimates.hand_made(), colour=True)


def test_one_plan_is_judged_and_not_recommended() -> None:
    for memory_gib, said in (
        (80, "zero0 does not fit: the device is short"),
        (96, "zero0 fits: 5.00 GiB"),
        (None, "--gpu"),
    ):
        estimate = estimates.estimate(
            estimates.MODEL, [estimates.hand_made().plans[0].plan], estimates.cluster(memory_gib)
        )
        text = printed(estimate)
        assert said in text
        assert "ecommend" not in text


@pytest.mark.parametrize("card", ["t4", "gaudi"])
def test_the_largest_batch_of_one_plan_is_marked_where_no_allocator_is_replayed(card: str) -> None:
    model = ModelShape(num_layers=1, hidden_size=64, num_attention_heads=4)
    plans = standard_plans(model, Workload(sequence_length=1024, precision="fp16"))
    found = estimate(model, plans[:1], Cluster(accelerator=accelerator(card)), closely=True)
    [row] = found.plans
    assert (row.pressed is None) == (card == "gaudi")
    line = next(line for line in printed(found).splitlines() if line.startswith("  zero0"))
    assert line.endswith(f" {'~' if row.pressed is None else ''}{row.max_micro_batch_size}")


def test_the_header_names_model_workload_and_machine() -> None:
    text = printed(estimates.hand_made(), width=120)
    assert "gpt2: 163,037,184 parameters" in text
    assert "micro batch 1 x 8 GPUs x 1 accumulation step = 8 samples a step" in text
    assert "1 node with 8 x Big GPU of 80.00 GiB; CPU memory 1.0 TiB per node" in text
    assert "made up" in printed(estimates.hand_made(), inferred="made up")


def test_cpu_memory_is_that_of_a_node() -> None:
    [line] = [line for line in printed(estimates.hand_made()).splitlines() if line.startswith("* zero1 ")]
    assert " 8.0 " in line
    assert " 16.0 " in line


def test_the_moment_has_a_column_where_there_is_room() -> None:
    assert "backward of block 11" not in printed(estimates.hand_made(), width=80)
    wide = printed(estimates.hand_made(), width=120)
    assert "backward, first step" in wide
    assert "backward of block 11" in wide


def test_what_the_columns_are_is_said() -> None:
    estimate = estimates.hand_made()
    assert "max batch: about, by a bound" in printed(estimate, width=200)
    rows = tuple(replace(row, max_sequence_length=123456) for row in estimate.plans)
    laddered = printed(replace(estimate, plans=rows))
    assert "max seq" in " ".join(laddered.split())
    [line] = [line for line in laddered.splitlines() if line.startswith("* zero1 ")]
    assert line.split()[-1] == "123456"
    assert "max seq" not in " ".join(printed(estimate).split())


def test_a_recommendation_that_needs_a_drive_says_so() -> None:
    estimate = estimates.hand_made()
    first = next(row for row in estimate.plans if row.plan.name == estimate.recommended)
    assert "--nvme-path" not in printed(estimate)
    for folder in (None, "/mnt/nvme"):
        offload = OffloadOptimizer(device="nvme", nvme_path=folder)
        zero = replace(estimates.ZEROS["zero3"], offload_optimizer=offload)
        swapping = replace(first, plan=replace(first.plan, zero=zero))
        rows = tuple(swapping if row is first else row for row in estimate.plans)
        assert ("--nvme-path" in printed(replace(estimate, plans=rows))) == (folder is None)


def test_one_plan_says_what_its_node_needs() -> None:
    row = estimates.hand_made().plans[0]
    [said] = [line for line in verdict_lines(row) if line.startswith("CPU memory of a node")]
    assert format_bytes(row.host.bytes_per_node) in said
    kept = replace(row, host=replace(row.host, bound_bytes_per_node=row.host.bytes_per_node + 2**30))
    assert any("at most" in line for line in verdict_lines(kept) if line.startswith("CPU memory of a node"))


def test_without_a_device_every_plan_names_the_cards_it_fits() -> None:
    text = printed(estimates.hand_made(memory_gib=None))
    assert "a100-80gb +2" in text
    assert "a100-80gb, h200, b200" in text
    assert "No recommendation" in text
