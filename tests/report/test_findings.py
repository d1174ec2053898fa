"""SARIF as its readers take it: places are URIs, rules explain themselves, and no address is promised."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dsplan.check.configuration import Run
from dsplan.check.run import check_files
from dsplan.report.findings import github_report, sarif_report, text_report

BAD = '{"train_batch_size": "x"}'


def sarif(path: Path) -> dict[str, Any]:
    checked = check_files([path], Run())
    found: dict[str, Any] = json.loads(sarif_report(checked, checked.findings))["runs"][0]
    return found


def test_places_are_uris(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = Path("my configs") / "größe 100%.json"
    name.parent.mkdir()
    name.write_text(BAD)
    for path, uri in (
        (name, "my%20configs/gr%C3%B6%C3%9Fe%20100%25.json"),
        (tmp_path / name, (tmp_path / name).as_uri()),
    ):
        places = [result["locations"][0]["physicalLocation"] for result in sarif(path)["results"]]
        assert {place["artifactLocation"]["uri"] for place in places} == {uri}


def test_rules_say_where_they_are_described(tmp_path: Path) -> None:
    path = tmp_path / "ds_config.json"
    path.write_text(BAD)
    driver = sarif(path)["tool"]["driver"]
    description = (Path(__file__).parents[2] / "docs" / "check.md").read_text(encoding="utf-8")
    for rule in driver["rules"]:
        assert f"docs/check.md#{rule['id'].lower()}" in rule["help"]["text"]
        assert f'<a id="{rule["id"].lower()}"></a>' in description
    assert "http" not in json.dumps(driver)


def test_a_finding_is_one_line_that_no_terminal_acts_on(tmp_path: Path) -> None:
    path = tmp_path / "ds\n_config.json"
    path.write_text('{"train_batch_size": 8, "a\\n::error file=x::y\\u001b[31m": 1}')
    checked = check_files([path], Run())
    [finding] = [each for each in checked.findings if each.rule.id == "DS101"]
    for report in (text_report, github_report):
        line, summary = report(checked, [finding]).split("\n")
        assert summary.startswith("Checked 1 configuration")
        assert not line.startswith("::error")
    assert "\\x1b[31m" in text_report(checked, [finding])
