"""The accuracy of formulas and dry run on the committed records: ``python -m tests.accuracy`` writes it down.

Writes docs/accuracy.md and the summaries in README.md and docs/dry-run.md; tests fail when they no longer say
what the formulas predict. The records are in tests/data/measured, made on H200 GPUs; of the dry run it takes what
``python -m tests.dry_accuracy`` has left in tests/data/dry_run.json. ``--json`` prints the numbers and writes nothing.

``records`` holds the formulas against each record, ``estimators`` the competitors; ``errors``, ``splits`` and
``targets`` say what the errors come to, ``tables`` and ``report`` how it is written.
"""

from tests.accuracy.records import RECORDS, ROOT, Compared, compared, refused
from tests.accuracy.report import report, summary, summary_of_dry_runs
from tests.accuracy.writing import readme_with

__all__ = [
    "RECORDS",
    "ROOT",
    "Compared",
    "compared",
    "readme_with",
    "refused",
    "report",
    "summary",
    "summary_of_dry_runs",
]
