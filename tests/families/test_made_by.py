"""What made a kept dry run: told apart by code, by what it was told and by versions; not by what is said about it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.families import made_by as maker
from tests.families.made_by import ROOT, code_lines, is_older, made_by, modules

TOLD = {"gpus": 2}
CODE = '''"""What it is for."""

from runner.other import taken


class Thing:
    """A thing."""

    def size(self) -> int:
        """In bytes."""
        # why
        return taken + 1
'''


def test_docstrings_comments_and_blank_lines_are_no_code() -> None:
    assert code_lines(CODE) == [
        "from runner.other import taken",
        "class Thing:",
        "    def size(self) -> int:",
        "        return taken + 1",
    ]


def test_a_text_that_is_not_a_docstring_is_code() -> None:
    assert code_lines('A = """\nb\n"""\n') == ['A = """', "b", '"""']


def test_what_a_rank_runs_is_followed_into_functions_and_not_into_formulas() -> None:
    found = modules(ROOT)
    assert {"runner.device.fake.patches", "runner.models.hugging_face", "dsplan.allocator.caching"} <= set(found)
    assert not any(name.startswith(("dsplan.decoders.", "dsplan.verdict.", "dsplan.engine.stage")) for name in found)


def _repository(root: Path, number: str) -> Path:
    (root / "runner").mkdir(parents=True)
    files = {
        "__init__": "",
        "train": CODE,
        "environment": "",
        "other": f"taken = {number}  # bytes\n",
        "apart": "x = 1\n",
    }
    for name, text in files.items():
        (root / "runner" / f"{name}.py").write_text(text, encoding="utf-8")
    return root


def test_the_code_that_is_imported_makes_the_fingerprint(tmp_path: Path) -> None:
    one, same, another = (_repository(tmp_path / name, number) for name, number in (("a", "1"), ("b", "1"), ("c", "2")))
    (same / "runner" / "apart.py").write_text("x = 2\n", encoding="utf-8")
    assert maker._code(one) == maker._code(same)
    assert maker._code(one) != maker._code(another)


def test_older_is_what_other_code_versions_or_specifications_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maker, "_versions", lambda: {"torch": "2.13.0"})
    kept = made_by(TOLD)
    assert not is_older(kept, TOLD)
    assert is_older(kept, {"gpus": 3})
    assert is_older(kept | {"torch": "2.11.0"}, TOLD)
    assert is_older(kept | {"fingerprint": "0" * 12}, TOLD)
    assert is_older(None, TOLD)


def test_where_a_package_is_missing_its_version_is_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = made_by(TOLD) | {"torch": "2.13.0"}
    monkeypatch.setattr(maker, "_versions", lambda: {})
    assert not is_older(kept, TOLD)
