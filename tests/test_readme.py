"""Every command of the README runs. Its two install lines are run by .ci/run."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"


def _commands() -> list[str]:
    text = README.read_text(encoding="utf-8")
    blocks = re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.startswith("dsplan ")]


def _dsplan(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    arguments = [sys.executable, "-m", "dsplan", *shlex.split(command)[1:]]
    return subprocess.run(arguments, cwd=folder, capture_output=True, text=True, timeout=600, check=False)


def test_the_readme_shows_every_command() -> None:
    from dsplan.cli import COMMANDS

    assert {command.split()[1] for command in _commands()} == set(COMMANDS)


def test_planning_commands_run_in_order(tmp_path: Path) -> None:
    """In one folder: what one command writes, the next one reads."""
    for command in _commands():
        if command.split()[1] != "verify":
            done = _dsplan(command, tmp_path)
            assert done.returncode == 0, (command, done.stderr)
            assert done.stdout


@pytest.mark.engine
def test_verify_commands_run(tmp_path: Path) -> None:
    """Where the records are that one of them names; on the CPU, unless the command asks for a dry run."""
    commands = [command for command in _commands() if command.split()[1] == "verify"]
    dry = [command for command in commands if {"--gpu", "--against"} & set(command.split())]
    assert 0 < len(dry) < len(commands)
    (tmp_path / "tests").symlink_to(README.parent / "tests")
    for command in commands:
        done = _dsplan(command if command in dry else f"{command} --device cpu", tmp_path)
        assert done.returncode == 0, (command, done.stderr)
        assert ("Confirmed: dry run against" if "--against" in command else "Confirmed") in done.stdout
        assert ("A dry run" in done.stdout) is (command in dry)
    assert (tmp_path / "memory.svg").exists()


def test_ci_finds_both_lines() -> None:
    text = README.read_text(encoding="utf-8")
    for name, ends in (("run", "--device cpu"), ("test", "-m pytest -m timing")):
        match = re.search(rf"^<!-- {name} -->\n```bash\n(.+)\n```$", text, re.MULTILINE)
        assert match is not None
        assert match.group(1).endswith(ends)
        assert "\n" not in match.group(1)
