"""Configurations in Markdown and in accelerate's YAML."""

from __future__ import annotations

from pathlib import Path

import pytest

from dsplan.check.configuration import Run
from dsplan.check.run import Checked, check_files
from dsplan.errors import InputError

ACCELERATE = """\
compute_environment: LOCAL_MACHINE
debug: false
distributed_type: DEEPSPEED   # one node
deepspeed_config:
  gradient_accumulation_steps: 1
  zero3_init_flag: false
  offload_param_device: cpu
  zero_stage: 2
mixed_precision: bf16
num_processes: 8
"""


def check(folder: Path, name: str, text: str) -> Checked:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return check_files([path], Run())


def places(checked: Checked) -> list[tuple[str, int, int]]:
    return [(finding.rule.id, finding.line, finding.column) for finding in checked.findings]


def test_blocks_of_markdown_are_checked_where_they_stand(tmp_path: Path) -> None:
    first = '  ~~~jsonc\n  {"zero_optimization": {\n    "stagee": 2}}\n  ~~~\n'
    text = f'é\n\n{first}\n```json\n{{"zero_optimization": {{"stage": 9}}}}\n```\n'
    checked = check(tmp_path, "a.md", text)
    assert checked.configurations == 2
    assert places(checked) == [("DS101", 5, 5), ("DS202", 9, 33)]


@pytest.mark.parametrize(
    "block",
    [
        '{"name": "package", "version": 1}',
        '{"zero_optimization": {"stage": [0|1|2]}}',
        '{"type": "object"}',
        "pip install deepspeed",
        "",
    ],
)
def test_other_blocks_are_left_alone(block: str, tmp_path: Path) -> None:
    checked = check(tmp_path, "a.md", f"```json\n{block}\n```\n```python\nx = {{'train_batch_size': 'x'}}\n```\n")
    assert (checked.configurations, checked.findings) == (0, ())


@pytest.mark.parametrize("language", ["yml", "yaml", "js", "javascript"])
def test_json_in_another_colour_is_checked_and_yaml_is_not(language: str, tmp_path: Path) -> None:
    text = f'```{language}\n{{\n"zero_optimization": {{"stage": 9}}\n}}\n```\n'
    assert places(check(tmp_path, "a.md", text)) == [("DS202", 3, 32)]
    yaml = f"```{language}\nzero_optimization:\n  stage: 9\n```\n"
    assert check(tmp_path, "b.md", yaml).configurations == 0


def test_a_list_in_a_document_may_be_what_the_autotuner_tries(tmp_path: Path) -> None:
    text = '{"train_micro_batch_size_per_gpu": [1, 4],\n"zero_optimization": {"stage": [2, 7]}}'
    shown = places(check(tmp_path, "a.md", f"```json\n{text}\n```\n"))
    assert [place for place in shown if place[0] != "DS321"] == [("DS202", 3, 32)]
    found = places(check(tmp_path, "a.json", text))
    assert [place for place in found if place[0] == "DS201"] == [("DS201", 1, 36), ("DS201", 2, 32)]
    tuned = text.replace("{", '{"autotuning": {"enabled": true}, ', 1).replace("7", "3")
    assert [rule for rule, _, _ in places(check(tmp_path, "tuned.json", tuned)) if rule != "DS321"] == []


def test_an_excerpt_need_not_be_complete(tmp_path: Path) -> None:
    text = (
        '```json\n"zero_optimization": {\n  "stage": 3,\n  ...\n},\n"scheduler": {"type": "WarmupDecayLR", ...}\n```\n'
    )
    assert places(check(tmp_path, "a.md", text.replace(", ...}", "}"))) == []


def test_accelerates_settings_are_checked_as_deepspeeds(tmp_path: Path) -> None:
    checked = check(tmp_path, "default.yaml", ACCELERATE)
    assert checked.configurations == 1
    assert places(checked) == [("DS401", 7, 3)]


def test_the_file_that_accelerate_names_is_checked(tmp_path: Path) -> None:
    (tmp_path / "ds.json").write_text('{"zero_optimization": {"stage": 2},\n"gradient_cliping": "auto"}')
    checked = check(tmp_path, "a.yml", "deepspeed_config:\n  deepspeed_config_file: 'ds.json'\n")
    (finding,) = [finding for finding in checked.findings if finding.rule.id == "DS101"]
    assert (finding.path.name, finding.line) == ("ds.json", 2)


@pytest.mark.parametrize(
    "text", ["a: 1\n", "- a\n- b\n", "deepspeed_config: {}\n", "distributed_type: MULTI_GPU\n", "%\n"]
)
def test_other_yaml_is_left_alone(text: str, tmp_path: Path) -> None:
    assert check(tmp_path, "a.yaml", text).findings == ()


def test_what_accelerate_config_writes_besides_is_read(tmp_path: Path) -> None:
    text = (
        "debug: false\ndeepspeed_config: {zero_stage: 2, offload_param_device: cpu}\ndowncast_bf16: 'no'\n"
        "fsdp_config: {}\nmain_training_function: main\ntpu_env: []\ntpu_name:\n"
    )
    checked = check(tmp_path, "a.yaml", text)
    assert (checked.configurations, places(checked)) == (1, [("DS401", 2, 35)])


@pytest.mark.parametrize(
    ("text", "place", "said"),
    [
        ("deepspeed_config:\n  zero_stage: [2\n", (3, 1), "this YAML cannot be read: expected ',' or ']'"),
        ("deepspeed_config:\n  zero_stage: !mine 2\n", (2, 15), "could not determine a constructor for the tag"),
        ("deepspeed_config:\n  zero_stage: \x01\n", (2, 15), "special characters are not allowed"),
        ("a: 2001-99-99\ndeepspeed_config:\n  zero_stage: 2\n", (1, 4), "month must be in 1..12"),
        ("a: &two 2\ndeepspeed_config:\n  zero_stage: *two\n", (1, 4), "write it in both"),
        (
            "deepspeed_config: !!python/object/apply:os.system [x]\n",
            (1, 19),
            "of the type python/object/apply:os.system",
        ),
        ("a: !!set {x}\ndeepspeed_config:\n  zero_stage: 2\n", (1, 4), "of the type set"),
        ("deepspeed_config: &all\n  zero_stage: *all\n", (1, 19), "write it in both"),
        (f"deepspeed_config: {'[' * 60}{']' * 60}\n", (1, 1), "more than 50 levels"),
        (
            f"deepspeed_config:\n{''.join(' ' * depth + 'a:' + chr(10) for depth in range(1, 60))}",
            (52, 52),
            "more than 50 levels",
        ),
        (f"deepspeed_config: {'[' * 6000}{']' * 6000}\n", (1, 1), "more than 50 levels"),
        (f"deepspeed_config:\n  zero_stage: 2{' ' * 70_000}\n", (1, 1), "more than 65,536 characters"),
    ],
)
def test_yaml_that_is_not_read_is_said(text: str, place: tuple[int, int], said: str, tmp_path: Path) -> None:
    (finding,) = check(tmp_path, "a.yaml", text).findings
    assert (finding.rule.id, finding.line, finding.column) == ("DS001", *place)
    assert said in finding.message
    assert "\n" not in finding.message


def test_a_file_that_is_not_there_and_a_folder_are_no_findings(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.json"):
        with pytest.raises(InputError):
            check_files([path], Run())
