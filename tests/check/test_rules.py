"""Every rule finds its bad example at the line, and nothing in its good one."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from dsplan.catalogue import accelerator, preset
from dsplan.check.configuration import Run
from dsplan.check.finding import SEVERITIES, Finding
from dsplan.check.rules import CHECKS, RULES
from dsplan.check.run import check_files
from dsplan.dsconfig.read import read_ds_config
from dsplan.dsconfig.removed import deprecated_keys, removed_keys
from dsplan.hardware import Cluster
from dsplan.kernels import kernels_of
from dsplan.units import format_bytes
from dsplan.walk import walk

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
    "key", ["gradient_cliping", "gradient_clipp1ng", "max_grad_norm", "clip_grad", "gradient_clipping"]
)
def test_what_was_meant_for_clipping_is_not_called_missing(key: str, tmp_path: Path) -> None:
    path = tmp_path / "ds.json"
    path.write_text(f'{{"train_batch_size": 8, "gradient_accumulation_steps": 1, "{key}": 1.0}}')
    assert "DS321" not in [finding.rule.id for finding in check_files([path], Run()).findings]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"amp": {}}', "refuses amp since 0.19.8; 0.19.7 was the last release to read it"),
        ('{"compile": {"backend": "inductor"}}', "since 0.16.6; 0.14.3 was the last"),
        ('{"zero_optimization": {"mics_shard_size": 4}}', "since 0.19.7; 0.19.6 was the last"),
        ('{"optimizer": {"type": "Adam", "params": {"max_grad_norm": 1}}}', "every release of DeepSpeed refuses"),
        ('{"aio": {"thread_count": 1}}', "0.16.3 was the last release to read it"),
        ('{"zero_optimization": {"stage": 3, "elastic_checkpoint": true}}', "deprecated since 0.19.3"),
        ('{"allgather_size": 500000000}', "deprecated since 0.2.0"),
        ('{"zero_optimization": {"cpu_offload": true}}', "deprecated since 0.3.15"),
        ('{"zero_optimization": {"cpu_offload_params": true}}', "since 0.7.0"),
        ('{"zero_optimization": {"legacy_stage1": true}}', "since 0.5.9"),
        ('{"zero_optimization": false}', "since 0.2.0"),
        ('{"bfloat16": {"enabled": true}}', "since 0.6.0"),
        ('{"optimizer": {"type": "OneBitLamb"}}', "has no OneBitLamb any more since 0.19.7"),
        ('{"train_batch_size": 1}', "since 0.19.3"),
    ],
)
def test_the_release_that_changed_it_is_said(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "ds.json"
    path.write_text(text)
    assert any(said in finding.message for finding in check_files([path], Run()).findings)


@pytest.mark.parametrize("key", [*removed_keys(), *deprecated_keys()])
def test_every_old_key_that_the_schema_knows_is_found(key: str, tmp_path: Path) -> None:
    document: Any = True
    for part in reversed(key.split(".")):
        document = {part: document}
    path = tmp_path / "ds.json"
    path.write_text(json.dumps(document))
    found = [finding for finding in check_files([path], Run()).findings if finding.key == key]
    assert found, key
    assert {finding.rule.id for finding in found} & {"DS101", "DS103", "DS104"}
    assert all(finding.instead for finding in found)


def test_a_trade_is_weighed_by_the_estimate(tmp_path: Path) -> None:
    """The second bucket of stage 2 is the reduce bucket once more: 5e7 elements of 2 bytes."""
    path = tmp_path / "ds.json"
    text = (
        '{"train_micro_batch_size_per_gpu": 1, "bf16": {"enabled": true}, "optimizer": {"type": "AdamW"},'
        ' "zero_optimization": {"stage": 2, "reduce_bucket_size": 5e7, "overlap_comm": true}}'
    )
    path.write_text(text)
    model = preset("gpt2-xl")

    def cost(run: Run) -> str:
        (message,) = [f.message for f in check_files([path], run).findings if f.rule.id == "DS803"]
        return message

    assert "95.4 MiB of device memory" in cost(Run(world_size=4))
    weighed = cost(Run(world_size=4, model=model, notes=True))
    plan = read_ds_config(path, world_size=4, sequence_length=model.max_position_embeddings).plan
    peaks = [
        max(step.peak_bytes for step in walk(model, each, 4, kernels_of(None)).steps)
        for each in (plan, replace(plan, zero=replace(plan.zero, overlap_comm=False)))
    ]
    assert f"costs {format_bytes(peaks[0] - peaks[1])} of device memory" in weighed


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
        ('{"aio": {"thread_count": 1}}', '"intra_op_parallelism"'),
        ('{"comms_config": {"verbose": false}}', '"comms_logger"'),
        ('{"monitoring_of_runs": {"enabled": true, "csv_monitor": {}}}', "move csv_monitor out of it"),
        ('{"optimizer": {"type": "FusedAdam"}}', '"Adam"'),
        ('{"optimizer": {"type": "DeepSpeedCPULion"}}', '"Lion"'),
        (
            '{"zero_optimization": {"stage": 3, "allgather_bucket_size": 1}}',
            '"stage": 1 or 2, or remove allgather_bucket_size',
        ),
    ],
)
def test_what_to_write_instead(text: str, instead: str, tmp_path: Path) -> None:
    path = tmp_path / "ds.json"
    path.write_text(text)
    assert instead in [finding.instead for finding in check_files([path], Run()).findings]


@pytest.mark.parametrize(
    ("text", "severity"),
    [
        ('{"train_batch_size": 8, "_comment": "what this is for"}', "note"),
        ('{"train_batch_size": 8, "//": "what this is for"}', "note"),
        ('{"train_batch_size": 8, "optimizer": {"type": "Adam", "#": "ours"}}', "note"),
        ('{"train_batch_size": 8, "fp16": {"_comment": "extra fields are forbidden here"}}', "error"),
        ('{"train_batch_size": 8, "optimizer": {"type": "Adam", "params": {"_comment": "an argument"}}}', "error"),
    ],
)
def test_a_key_that_stands_for_a_comment_is_no_misspelling(text: str, severity: str, tmp_path: Path) -> None:
    path = tmp_path / "ds.json"
    path.write_text(text)
    (found,) = [each for each in check_files([path], Run()).findings if each.rule.id in ("DS101", "DS502")]
    assert (found.severity, found.instead, found.edit) == (severity, "remove it", None)
