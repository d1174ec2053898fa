"""Where the report and its summaries are written."""

from __future__ import annotations

from dsplan.files import write_text
from tests.accuracy.records import ROOT
from tests.accuracy.report import report, summary, summary_of_dry_runs

_BEGIN, _END = "<!-- accuracy -->\n", "<!-- /accuracy -->"


def readme_with(summary_text: str, readme: str) -> str:
    """The README, or another document, with the summary between its markers."""
    before, _, rest = readme.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    return f"{before}{_BEGIN}{summary_text}\n{_END}{after}"


def write_all() -> None:
    """docs/accuracy.md, and the summaries in README.md and docs/dry-run.md."""
    documents = {"docs/accuracy.md": report()}
    for name, text in (("README.md", summary()), ("docs/dry-run.md", summary_of_dry_runs())):
        documents[name] = readme_with(text, (ROOT / name).read_text(encoding="utf-8"))
    for name, text in documents.items():
        write_text(ROOT / name, text, force=True)
