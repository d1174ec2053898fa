"""For accelerate: its own loader and launcher read the files, and its plugin has the plan."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from dsplan.check.yaml_tree import parse
from dsplan.dsconfig.emit import emit
from dsplan.dsconfig.formats import render
from dsplan.dsconfig.formats.yaml import yaml_text
from dsplan.hardware import Cluster
from dsplan.plan import Plan
from dsplan.zero import ZeroConfig
from tests.dsconfig.strategies import CLUSTER, MODEL, every_strategy

from .readers import ONE_NODE, answers, as_planned, resolved, target, written


def emitted(plan: Plan, folder: Path, cluster: Cluster = CLUSTER, output: str = "ds_config.json") -> Path:
    emission = written("accelerate", target(plan, cluster, output), folder)
    accelerate, launch, *words = shlex.split(emission.launch["accelerate"])
    assert (accelerate, launch) == ("accelerate", "launch")
    (folder / "words.json").write_text(json.dumps(words))
    return folder


@pytest.mark.engine
def test_accelerate_resolves_every_strategy_to_the_plan(tmp_path: Path) -> None:
    strategies = every_strategy()
    found = resolved("accelerate", [emitted(plan, tmp_path / plan.name) for plan in strategies])
    wrong = [
        plan.name
        for plan, record in zip(strategies, found, strict=True)
        if not as_planned(record["config"], emit(plan, MODEL, CLUSTER))
    ]
    assert wrong == []
    for plan, record in zip(strategies, found, strict=True):
        assert record["zero3_init"] is (plan.zero.stage == 3)
        assert record["processes"] == ["4", 8, 2]
        assert record["node"] == ["2", 0, "static", "node-0:29500"]


@pytest.mark.engine
def test_one_node_and_names_that_need_quotes(tmp_path: Path) -> None:
    plan = Plan(name="p", zero=ZeroConfig(stage=3))
    one = emitted(plan, tmp_path / "one", ONE_NODE)
    odd = emitted(plan, tmp_path / "odd", ONE_NODE, """no: "it's" # é.json""")
    yml = emitted(plan, tmp_path / "yml", ONE_NODE, "mine.yml")
    for record in resolved("accelerate", [one, odd, yml]):
        assert record["processes"] == ["4", 4, 1]
        assert as_planned(record["config"], emit(plan, MODEL, ONE_NODE))


@pytest.mark.engine
def test_what_is_not_in_the_file_is_what_accelerate_refuses(tmp_path: Path) -> None:
    refused = {"mixed_precision: bf16": "ignored", "num_nodes: 2": "unknown keys", "main_process_port: 0": None}
    folders = [emitted(Plan(name="p"), tmp_path / str(number), ONE_NODE) for number in range(len(refused))]
    for folder, line in zip(folders, refused, strict=True):
        path = folder / "accelerate.yaml"
        path.write_text(f"{path.read_text()}{line}\n")
    for record, said in zip(answers("accelerate", folders), refused.values(), strict=True):
        assert (record["error"] is None) if said is None else said in record["error"]


@pytest.mark.parametrize(("output", "names"), [
    ("ds_config.json", ["ds_config.json", "accelerate.yaml"]),
    ("x/gpt2.json", ["x/gpt2.json", "x/accelerate_gpt2.yaml"]),
    ("accelerate.yaml", ["ds_config.json", "accelerate.yaml"]),
    ("x/accelerate-z3.yml", ["x/ds_config_z3.json", "x/accelerate-z3.yml"]),
])  # fmt: skip
def test_either_file_can_be_named(output: str, names: list[str]) -> None:
    emission = render("accelerate", target(output=output))
    assert [str(file.path) for file in emission.files] == names
    config = yaml.safe_load(emission.main)
    assert config["deepspeed_config"]["deepspeed_config_file"] == names[0]
    assert names[1] in shlex.split(emission.launch["accelerate"])


def test_several_nodes_say_what_is_a_placeholder() -> None:
    emission = render("accelerate", target())
    assert "# node-0 is a placeholder" in emission.main
    assert any("--machine_rank of its own, from 0 to 1" in note for note in emission.notes)
    assert "placeholder" not in render("accelerate", target(cluster=ONE_NODE)).main


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.text(st.characters(exclude_categories=["Cs"])),
    st.sampled_from(["no", "Yes", "null", "~", "1e3", "0x1f", "1:30", "- a", "a: b", "# c", "", "2001-01-01", ".inf"]),
)
KEYS = st.from_regex(r"[a-z]{3}[a-z_]{0,9}", fullmatch=True).filter(
    lambda key: key not in ("yes", "off", "null", "true")
)


@given(document=st.dictionaries(KEYS, st.one_of(SCALARS, st.dictionaries(KEYS, SCALARS, min_size=1)), min_size=1))
def test_yaml_comes_back_as_it_was_written(document: dict[str, Any]) -> None:
    assert yaml.safe_load(yaml_text(document)) == document


@given(name=st.text(st.characters(categories=["L", "N", "P", "S", "Zs"], max_codepoint=0x24F), min_size=1))
def test_dsplan_check_reads_the_same_yaml(name: str) -> None:
    root, problems = parse(yaml_text({"key": name}), "key")
    assert problems == ()
    assert root is not None
    member = root.member("key")
    assert member is not None
    assert getattr(member.node, "value", None) == name
