"""Checking files: every rule on every configuration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dsplan.check.configuration import Run
from dsplan.check.finding import Finding
from dsplan.check.rules import CHECKS
from dsplan.check.source import read_source


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """What came out of a check: the files, the number of configurations in them, and the findings in their order."""

    paths: tuple[Path, ...]
    configurations: int
    findings: tuple[Finding, ...]


def check_files(paths: Sequence[Path], run: Run) -> Checked:
    """Check every configuration in ``paths``.

    Raises:
        InputError: a file cannot be opened. What a file says is never an error here, always a finding.
    """
    findings: list[Finding] = []
    configurations = 0
    for path in paths:
        source = read_source(path, run)
        configurations += len(source.configurations)
        found = list(source.findings)
        for config in source.configurations:
            for check in CHECKS:
                found += check(config)
        # A file that another one names is reported after it.
        order = {name: index for index, name in enumerate(dict.fromkeys([path, *(finding.path for finding in found)]))}
        findings += sorted(
            dict.fromkeys(found),
            key=lambda finding: (order[finding.path], finding.line, finding.column, finding.rule.id),
        )
    return Checked(paths=tuple(paths), configurations=configurations, findings=tuple(findings))
