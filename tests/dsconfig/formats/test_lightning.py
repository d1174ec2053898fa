"""For Lightning: a Trainer with the plan's values, and a configuration without what Lightning refuses.

Lightning itself is not installed: the snippet is parsed and its arguments are evaluated.
"""

from __future__ import annotations

import ast
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsplan.catalogue import find_accelerator
from dsplan.dsconfig.emit import emit
from dsplan.dsconfig.formats import render
from dsplan.errors import InputError
from dsplan.hardware import Cluster
from dsplan.plan import Plan
from dsplan.workload import Workload
from tests.dsconfig.strategies import CLUSTER, MODEL, every_strategy

from .readers import ONE_NODE, target


def arguments(snippet: str) -> dict[str, Any]:
    """The arguments of Trainer(...), and under "strategy" those of DeepSpeedStrategy(...)."""
    (assignment,) = [node for node in ast.parse(snippet).body if isinstance(node, ast.Assign)]
    call = assignment.value
    assert isinstance(call, ast.Call)
    assert ast.unparse(call.func) == "Trainer"
    return {str(word.arg): value(word.value) for word in call.keywords}


def value(node: ast.expr) -> Any:
    if isinstance(node, ast.Call):
        assert ast.unparse(node.func) == "DeepSpeedStrategy"
        return {str(word.arg): ast.literal_eval(word.value) for word in node.keywords}
    return ast.literal_eval(node)


PRECISIONS = {"fp32": "32-true", "fp16": "16-mixed", "bf16": "bf16-mixed"}


def test_every_strategy_keeps_its_values() -> None:
    for plan in every_strategy():
        emission = render("lightning", target(plan))
        document = emit(plan, MODEL, CLUSTER)
        assert arguments(emission.main) == {
            "strategy": {"config": "ds_config.json"},
            "accelerator": "gpu",
            "devices": 4,
            "num_nodes": 2,
            "precision": PRECISIONS[plan.workload.precision],
            "accumulate_grad_batches": 3,
            "gradient_clip_val": 1.0,
            "max_steps": 10_000,
        }
        # What Lightning makes of the file (_format_batch_size_and_grad_accum_config) is the plan.
        read = {**emission.config, "gradient_accumulation_steps": 3}
        if plan.zero.stage == 3:
            assert read["zero_allow_untested_optimizer"] is document.get("zero_allow_untested_optimizer", False)
            read["zero_allow_untested_optimizer"] = document.get("zero_allow_untested_optimizer")
            document.setdefault("zero_allow_untested_optimizer", None)
        assert read == document
        assert "gradient_accumulation_steps" not in emission.config


@pytest.mark.parametrize(
    ("output", "names"),
    [
        ("ds_config.json", ["ds_config.json", "lightning_strategy.py"]),
        ("x/my-run.json", ["x/my-run.json", "x/lightning_strategy_my_run.py"]),
        ("x/trainer.py", ["x/ds_config_trainer.json", "x/trainer.py"]),
    ],
)
def test_either_file_can_be_named(output: str, names: list[str]) -> None:
    emission = render("lightning", target(output=output))
    assert [str(file.path) for file in emission.files] == names
    assert arguments(emission.main)["strategy"] == {"config": names[0]}


_NAMES = st.text(st.characters(exclude_categories=["C", "Z"], exclude_characters="/."), min_size=1)


@settings(max_examples=50)
@given(name=_NAMES.filter(lambda name: not name.startswith("-")))  # which a launcher takes for an option
def test_any_name_is_quoted(name: str) -> None:
    emission = render("lightning", target(output=f"{name}.json"))
    assert arguments(emission.main)["strategy"] == {"config": f"{name}.json"}


def test_one_node_starts_itself_and_several_are_started() -> None:
    assert render("lightning", target(cluster=ONE_NODE)).launch == {"python": "python train.py"}
    several = render("lightning", target(cluster=Cluster(gpus_per_node=8, num_nodes=3))).launch
    assert several["torchrun"].endswith("--rdzv-endpoint=node-0:29500 train.py")
    assert several["slurm"] == "srun --nodes=3 --ntasks-per-node=8 python train.py"


def test_the_dataloader_has_to_have_the_micro_batch() -> None:
    plan = Plan(name="p", workload=replace(Workload(), micro_batch_size=7))
    assert "batch_size has to be 7" in render("lightning", target(plan)).main


def test_a_device_that_the_strategy_refuses() -> None:
    with pytest.raises(InputError, match="not on gaudi2; choose another format"):
        render("lightning", target(cluster=replace(ONE_NODE, accelerator=find_accelerator("gaudi2"))))
    render("lightning", target(cluster=replace(ONE_NODE, accelerator=find_accelerator("h200"))))
