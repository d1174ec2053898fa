"""Every rule finds its bad example at the line, and nothing in its good one."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from dsplan.catalogue import accelerator, preset
from dsplan.check.configuration import Run
from dsplan.check.finding import SEVERITIES, Finding
from dsplan.check.rules import CHECKS, RULES
from dsplan.check.run import check_files
from dsplan.hardware import Cluster

from .examples import EXAMPLES, Example

CASES = [(rule, example) for rule, examples in EXAMPLES.items() for example in examples]
#: Verdicts between fits and does not fit depend on the formulas.
NO_EXAMPLE = {"DS812"}


def run_of(options: dict[str, Any], *, good: bool) -> Run:
    options = dict(options)
    names = {field.name for field in fields(Run)}
    model, gpu = options.pop("model", None), options.pop("gpu", None)
    model = options.pop("good_model", model) if good else model
    options.pop("good_model", None)
    assert options.keys() <= names
    if model is not None:
        options["model"] = preset(model)
    if gpu is not None:
        options["cluster"] = Cluster(accelerator=accelerator(gpu), gpus_per_node=1)
    return Run(**options)


def findings(folder: Path, text: str, example: Example, *, good: bool) -> tuple[Finding, ...]:
    (folder / "ds_config.json").write_text('{"train_batch_size": 8, "zero_optimization": {"stage": 1}}')
    path = folder / example.name
    path.write_text(text)
    return check_files([path], run_of(example.options, good=good)).findings


def test_every_rule_has_an_example() -> None:
    assert {rule.id for rule in RULES} - NO_EXAMPLE == EXAMPLES.keys()


def test_ids_and_names_are_unique_and_checks_say_where_they_have_it_from() -> None:
    assert len({rule.id for rule in RULES}) == len({rule.name for rule in RULES}) == len(RULES)
    assert {rule.severity for rule in RULES} <= set(SEVERITIES)
    for check in CHECKS:
        assert check.__doc__, check


@pytest.mark.parametrize(("rule", "example"), CASES, ids=[f"{rule}-{index}" for index, (rule, _) in enumerate(CASES)])
def test_a_rule_finds_its_bad_example(rule: str, example: Example, tmp_path: Path) -> None:
    found = findings(tmp_path, example.bad, example, good=False)
    assert (rule, example.line) in {(finding.rule.id, finding.line) for finding in found}, found
    for finding in found:
        assert finding.message
        assert not finding.message.endswith(".")


@pytest.mark.parametrize(("rule", "example"), CASES, ids=[f"{rule}-{index}" for index, (rule, _) in enumerate(CASES)])
def test_a_rule_is_silent_about_its_good_example(rule: str, example: Example, tmp_path: Path) -> None:
    found = findings(tmp_path, example.good, example, good=True)
    assert rule not in {finding.rule.id for finding in found}, found
    assert not [finding for finding in found if finding.severity == "error" and finding.rule.id != "DS811"], found


@pytest.mark.parametrize(
    ("text", "instead"),
    [
        ('{"gradient_clipp1ng": 1}', '"gradient_clipping"'),
        ('{"zero_optimization": {"all_reduce_bucket_size": 5}}', '"reduce_bucket_size"'),
        ('{"zero_optimization": {"fp16": {}}}', "move it to the top level"),
        ('{"offload_optimizer": {}}', "move it to zero_optimization"),
        ('{"zero_optimization": {"cpu_offload_params": true}}', '"offload_param"'),
        ('{"optimizer": {"type": "AdamWW"}}', '"AdamW"'),
        ('{"zero_optimization": {"reduce_bucket_size": "5e8"}}', "500000000"),
        ('{"fp16": {"enabled": "False"}}', "false"),
        ('{"max_grad_norm": 1.0}', '"gradient_clipping"'),
    ],
)
def test_what_to_write_instead(text: str, instead: str, tmp_path: Path) -> None:
    path = tmp_path / "ds.json"
    path.write_text(text)
    assert instead in [finding.instead for finding in check_files([path], Run()).findings]
