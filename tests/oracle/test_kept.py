"""What the slow lane keeps and writes, without a dry run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from dsplan.units import MIB
from tests.oracle.grid import cases
from tests.oracle.kept import Kept, read_kept, write_kept
from tests.oracle.report import report

ONE = Kept(
    name="1-0",
    text="z3 n8 bf16",
    traits={"stage": "3", "offload": "none"},
    rank=0,
    phases=(("init", "init", 99 * MIB, 100 * MIB), ("0", "backward", 1000 * MIB, 1000 * MIB)),
    allocated=(1001 * MIB, 1000 * MIB),
    pinned=(0, 0),
    pageable=(50 * MIB, 50 * MIB),
    seconds=1.5,
    versions={"torch": "2.13.0", "deepspeed": "0.19.8"},
    date="2026-01-02",
)
FAR = replace(
    ONE, name="1-1", traits={"stage": "2", "offload": "optimizer"}, phases=(("0", "step", 900 * MIB, 1000 * MIB),)
)


def test_what_is_kept_is_read_again_and_a_broken_line_is_not(tmp_path: Path) -> None:
    path = tmp_path / "oracle.jsonl"
    assert read_kept(path) == []
    write_kept(path, [ONE, FAR])
    assert read_kept(path) == [ONE, FAR]
    with path.open("a", encoding="utf-8") as lines:
        lines.write('{"name": "1-2", "te')
    assert read_kept(path) == [ONE, FAR]


def test_the_page_says_how_far_off_which_configuration_is() -> None:
    page = report([ONE, FAR], 2, 1, ["1-2: did not end"])
    assert "| peak over all steps, tensors | 2 | 5.000 % | 0.2 % | 10.000 % | 1.0 % | -10.000 % | -0.5 % |" in page
    assert "1 are further off than 2 % and 16 MiB, and 1 are under by more than 1 % and 8 MiB" in page.replace(
        "\n", " "
    )
    assert page.index("| 1-1 | -10.000 % | -10.000 % in 0 step |") < page.index("| 1-0 | +0.000 % | -1.000 % in init |")
    assert "| stage: 2 | 1 | -10.000 % |" in page
    assert "- 1-2: did not end" in page
    assert "torch 2.13.0, DeepSpeed 0.19.8" in page


def test_the_grid_is_the_same_for_the_same_seed_and_has_everything_in_it() -> None:
    found = list(cases(150, 5))
    assert found == list(cases(150, 5))
    plans = [case.plan for case in found]
    assert {plan.zero.stage for plan in plans} == {0, 1, 2, 3}
    assert any(plan.workload.grad_accum_dtype for plan in plans)
    assert any(plan.workload.communication_data_type for plan in plans)
    assert any(not plan.zero.memory_efficient_linear for plan in plans)
    assert {plan.zero.offload_optimizer.device for plan in plans} == {"none", "cpu", "nvme"}
    assert any(plan.zero.offload_optimizer.ratio < 1 for plan in plans)
    assert any(case.model.hidden_size == 12_288 for case in found)
    assert {plan.torch_autocast for plan in plans} == {None, "bf16", "fp16"}
    assert any(plan.zero.zero_hpz_partition_size > 1 for plan in plans)
    options = [plan.checkpointing for plan in plans]
    assert any(each.cpu_checkpointing and not each.partition_activations for each in options)
    assert {each.cpu_checkpointing for each in options if each.partition_activations} == {True, False}
    assert any(each.number_checkpoints for each in options)
    assert any(
        plan.zero.stage == 1 and plan.workload.grad_accum_dtype and plan.zero.offloads_optimizer for plan in plans
    )
