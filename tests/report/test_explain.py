"""--explain: the terms add up to the peak, and say where they come from."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from dsplan.estimate import Estimate, PlanEstimate
from dsplan.hardware import Accelerator, Cluster
from dsplan.report.explain import print_explanation
from dsplan.units import GIB
from dsplan.verdict.judge import Pressed
from tests.report import estimates


def printed(row: PlanEstimate, estimate: Estimate | None = None, width: int = 120) -> str:
    file = io.StringIO()
    console = Console(file=file, width=width, highlight=False, markup=False)
    print_explanation(console, estimate or estimates.hand_made(explain=True), row)
    return file.getvalue()


def zero2() -> PlanEstimate:
    [row] = [row for row in estimates.hand_made(explain=True).plans if row.plan.name == "zero2"]
    return row


@pytest.mark.parametrize("width", [80, 120])
def test_every_term_with_size_share_formula_and_source(width: int) -> None:
    text = printed(zero2(), width=width)
    assert max(len(line) for line in text.splitlines()) <= width
    for words in ("49.00 GiB", "98.0 %", "parameters", "e·Ψ", "ZeRO arXiv:1910.02054", "Ψ=163,037,184", "N=8"):
        assert words in text
    assert "100.0 %  = allocated at the peak, 53,687,091,200 bytes" in text
    assert "not in any term" not in text


def test_no_source_is_cut_where_there_is_little_room() -> None:
    row = zero2()
    source = "aten/src/ATen/cuda/CublasHandlePool.cpp:getChosenWorkspaceSize"
    text = printed(replace(row, terms=(replace(row.terms[0], source=source), *row.terms[1:])), width=50)
    assert "…" not in text
    assert source in "".join(text.split())


def test_a_sum_that_is_not_the_peak_is_said() -> None:
    row = zero2()
    assert "not in any term" in printed(replace(row, terms=row.terms[1:]))


def test_host_terms_are_apart() -> None:
    text = printed(zero2())
    assert "CPU memory of one rank at that moment" in text
    assert "fp32 master parameters (host) [pinned]" in text
    assert "24.00 GiB per node" in text


def test_on_the_cpu_every_place_is_the_devices() -> None:
    cpu = Cluster(accelerator=Accelerator(name="cpu", label="CPU", kind="cpu", memory_bytes=None))
    row = zero2()
    everything = sum(term.size_bytes for term in row.terms)
    row = replace(row, device=replace(row.device, peak_bytes=everything))
    text = printed(row, replace(estimates.hand_made(explain=True), cluster=cpu))
    assert "not in any term" not in text
    assert "at that moment" not in text


def test_the_phases_of_all_steps() -> None:
    lines = [line.split() for line in printed(zero2()).splitlines()]
    assert ["init", "1.00", "GiB", "2.00", "GiB", "engine", "initialisation"] in lines
    assert ["first", "step", "backward", "2.00", "GiB", "50.00", "GiB", "backward", "of", "block", "11"] in lines
    assert ["steady", "state", "forward", "3.00", "GiB", "4.00", "GiB", "loss"] in lines


def test_what_the_device_shows() -> None:
    text = printed(zero2())
    assert "50.00 GiB allocated + 512.0 MiB context" in text
    said = " ".join(text.split())
    assert "= 51.00 GiB; fragmentation may add up to " in said
    assert "; 29.00 GiB left." in said


def test_what_was_replayed_stands_for_the_bound() -> None:
    row = zero2()
    pressed = Pressed(
        verdict="fits",
        offered_bytes=80 * GIB,
        margin_bytes=0,
        reserved_bytes=60 * GIB,
        least_bytes=53 * GIB,
        moment=None,
    )
    said = " ".join(printed(replace(row, pressed=pressed)).split())
    assert "with the fragmentation of a replay it lives with 53.50 GiB; 29.00 GiB left." in said
    assert "may add" not in said
