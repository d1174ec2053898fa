"""docs/emit-config.md shows what dsplan emits, to the letter."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from dsplan.cli import main
from dsplan.dsconfig import deepspeed_parser
from dsplan.dsconfig.formats import FORMATS

DOCS = Path(__file__).parents[2] / "docs" / "emit-config.md"
_SECTION = re.compile(r"^## (\w+)\n(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"^`([\w.]+)`:\n\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINES = re.compile(r"^```text\n(.*?)^```$", re.MULTILINE | re.DOTALL)
#: What a section shows: every file that differs from the plain configuration.
SHOWN = {
    "hf": {"ds_config.json", "training_arguments.json"},
    "accelerate": {"accelerate.yaml"},
    "lightning": {"lightning_strategy.py"},
    "launch": {"hostfile", "launch_deepspeed.sh", "launch_torchrun.sh", "launch_slurm.sh"},
}


def text() -> str:
    return DOCS.read_text(encoding="utf-8")


def command(format_name: str) -> list[str]:
    (line,) = re.findall(r"^```bash\ndsplan (.*)\n```$", text(), re.MULTILINE)
    return shlex.split(line.replace("NAME", format_name))


@pytest.mark.parametrize("format_name", SHOWN)
def test_the_examples_are_what_is_emitted(
    format_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the real formulas; DeepSpeed's parser is asked elsewhere."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(deepspeed_parser, "check_with_deepspeed", lambda *_: None)
    assert main([*command(format_name), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    section = dict(_SECTION.findall(text()))[format_name]
    shown = dict(_FILE.findall(section))
    assert set(shown) == SHOWN[format_name]
    assert shown == {name: (tmp_path / name).read_text(encoding="utf-8") for name in shown}
    lines = [line for block in _LINES.findall(section.split("`hostfile`:")[0]) for line in block.splitlines()]
    assert lines == ([] if format_name == "launch" else list(document["launch"].values()))


def test_the_table_has_every_format_and_file() -> None:
    rows = re.findall(r"^\| `(\w+)`.*?\| .*? \| (.*) \|$", text(), re.MULTILINE)
    assert [name for name, _ in rows] == list(FORMATS)
    for name, files in rows:
        assert set(re.findall(r"`([\w.]+)`", files)) == SHOWN.get(name, set()) | {"ds_config.json"}
