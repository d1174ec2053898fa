"""Making the replacements that are safe: keys that are misspelt or renamed, and values of which the type is wrong."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path

from dsplan.check.finding import Finding


def fixed(path: Path, findings: Sequence[Finding]) -> tuple[str, str]:
    """The text of ``path`` with every safe replacement made, and the difference as a unified diff."""
    before = path.read_bytes().decode("utf-8")
    after = before
    edits = {finding.edit for finding in findings if finding.path == path and finding.edit is not None}
    for edit in sorted(edits, key=lambda edit: -edit.offset):
        after = after[: edit.offset] + edit.text + after[edit.end :]
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), f"{path}", f"{path} (fixed)", lineterm="")
    return after, "".join(f"{line}\n" for line in lines)
