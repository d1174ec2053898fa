"""Findings of a check: as text, JSON, GitHub's annotations and SARIF."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from dsplan import __version__
from dsplan.check.finding import ERROR, NOTE, SEVERITIES, WARNING, Finding
from dsplan.check.rules import RULES
from dsplan.check.run import Checked

SCHEMA_VERSION = 1
#: Where the rules are described, in this repository, which promises no address of its own.
DOCUMENTATION = "dsplan, docs/check.md"

_GITHUB = {ERROR: "error", WARNING: "warning", NOTE: "notice"}
_SARIF_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"


def text_report(checked: Checked, shown: Sequence[Finding]) -> str:
    """One line a finding, as compilers print them, and a line that counts."""
    lines = [_line(finding) for finding in shown]
    return "\n".join([*lines, _summary(checked, shown)])


def json_report(checked: Checked, shown: Sequence[Finding]) -> str:
    """A document valid under ``schemas/check.schema.json``."""
    counts = Counter(finding.severity for finding in checked.findings)
    return _json(
        {
            "schema_version": SCHEMA_VERSION,
            "dsplan_version": __version__,
            "files": [str(path) for path in checked.paths],
            "configurations": checked.configurations,
            "counts": {severity: counts[severity] for severity in reversed(SEVERITIES)},
            "findings": [
                {
                    "file": str(finding.path),
                    "line": finding.line,
                    "column": finding.column,
                    "rule": finding.rule.id,
                    "name": finding.rule.name,
                    "severity": finding.severity,
                    "key": finding.key,
                    "message": finding.message,
                    "instead": finding.instead,
                    "fixable": finding.edit is not None,
                }
                for finding in shown
            ],
        }
    )


def github_report(checked: Checked, shown: Sequence[Finding]) -> str:
    """GitHub's workflow commands, which put each finding at its line of a pull request, and a line that counts."""
    lines = [
        f"::{_GITHUB[finding.severity]} file={_escape(str(finding.path), ':,')},line={finding.line},"
        f"col={finding.column},title={finding.rule.id} {finding.rule.name}::{_escape(_what(finding))}"
        for finding in shown
    ]
    return "\n".join([*lines, _summary(checked, shown)])


def sarif_report(checked: Checked, shown: Sequence[Finding]) -> str:
    """SARIF 2.1.0, which code-scanning services read."""
    index = {rule.id: number for number, rule in enumerate(RULES)}
    driver = {
        "name": "dsplan",
        "version": __version__,
        "rules": [
            {
                "id": rule.id,
                "name": rule.name,
                "shortDescription": {"text": rule.summary},
                "defaultConfiguration": {"level": rule.severity},
                "help": {"text": f"{rule.summary} ({DOCUMENTATION}#{rule.id.lower()})"},
            }
            for rule in RULES
        ],
    }
    results = [
        {
            "ruleId": finding.rule.id,
            "ruleIndex": index[finding.rule.id],
            "level": finding.severity,
            "message": {"text": _what(finding)},
            "locations": [
                {
                    "physicalLocation": {
                        "artifactLocation": {"uri": _uri(finding.path)},
                        "region": {"startLine": finding.line, "startColumn": finding.column},
                    }
                }
            ],
        }
        for finding in shown
    ]
    run = {"tool": {"driver": driver}, "columnKind": "unicodeCodePoints", "results": results}
    del checked  # SARIF has no place for files without a finding
    return _json({"$schema": _SARIF_SCHEMA, "version": "2.1.0", "runs": [run]})


REPORTS: dict[str, Callable[[Checked, Sequence[Finding]], str]] = {
    "text": text_report,
    "json": json_report,
    "github": github_report,
    "sarif": sarif_report,
}


def _uri(path: Path) -> str:
    """A path as SARIF's artifactLocation has it (RFC 3986): relative to the folder of the call, or ``file:///…``."""
    return path.as_uri() if path.is_absolute() else quote(path.as_posix())


def _line(finding: Finding) -> str:
    place = f"{finding.path}:{finding.line}:{finding.column}"
    return _shown(f"{place}: {finding.severity} {finding.rule.id}: {_what(finding)}")


def _shown(text: str) -> str:
    """``text`` on one line: a key or a path may hold line ends, and codes that a terminal or a CI's log acts on."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def _what(finding: Finding) -> str:
    return f"{finding.message}; fix: {finding.instead}" if finding.instead else finding.message


def _summary(checked: Checked, shown: Sequence[Finding]) -> str:
    counts = Counter(finding.severity for finding in checked.findings)
    found = [_count(counts[severity], severity) for severity in reversed(SEVERITIES) if counts[severity]]
    files = f"{_count(checked.configurations, 'configuration')} in {_count(len(checked.paths), 'file')}"
    hidden = len(checked.findings) - len(shown)
    # A gate that is given the wrong files passes: that has to be seen.
    nothing = "nothing found" if checked.configurations else "nothing there to check"
    words = ", ".join(found) or nothing
    return f"Checked {files}: {words}" + (f" ({hidden} not shown; see --severity)." if hidden else ".")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _escape(text: str, more: str = "") -> str:
    return "".join(_escaped(text, more))


def _escaped(text: str, more: str) -> Iterator[str]:
    for character in text:
        yield f"%{ord(character):02X}" if character in f"%\r\n{more}" else character


def _json(document: dict[str, Any]) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False)
