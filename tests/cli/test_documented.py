"""Every option that a command has stands in the README or in the documentation, and no option there is made up."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from dsplan.cli import COMMANDS, SPELLINGS, _command

ROOT = Path(__file__).parents[2]
TEXT = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")))
_OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9_-]*")


def options(command: str) -> set[str]:
    """The long names of a command's options, as it declares them."""
    group: Any = _command([command])
    declared = group.commands[command] if hasattr(group, "commands") else group
    found = {name for each in declared.params for name in (*each.opts, *each.secondary_opts)}
    return {name for name in found if name.startswith("--")} | {"--help"}


def dashed(name: str) -> str:
    plain = name.removeprefix("--").replace("_", "-")
    return f"--{SPELLINGS.get(plain, plain)}"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_documented(command: str) -> None:
    named = {dashed(name) for name in _OPTION.findall(TEXT)}
    on_by_default = {"--ddp", "--times"}  # their other halves say what they are
    # What is named short (-o) stands so in the examples.
    short = {"--output"} if re.search(r"(?<![\w-])-o ", TEXT) else set()
    assert options(command) - named - on_by_default - short == set()


def test_no_command_in_the_documentation_has_an_option_that_is_not_there() -> None:
    commands = "|".join(COMMANDS)
    lines = re.findall(rf"dsplan ({commands})((?: [^`\n&|#]*)?)", TEXT)
    assert len(lines) > 50
    wrong = [
        (command, name)
        for command, rest in lines
        for name in _OPTION.findall(rest)
        if dashed(name) not in options(command)
    ]
    assert wrong == []
