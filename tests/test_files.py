"""Atomic writing: the whole text or nothing, and never over a file by accident."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dsplan.errors import InputError
from dsplan.files import write_text


def test_writes_a_new_file_that_others_may_read(tmp_path: Path) -> None:
    path = tmp_path / "ds.json"
    write_text(path, "Ψ = 1\n", force=False)
    assert path.read_text(encoding="utf-8") == "Ψ = 1\n"
    mask = os.umask(0)
    os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask
    assert list(tmp_path.iterdir()) == [path]


def test_overwrites_only_with_force(tmp_path: Path) -> None:
    path = tmp_path / "ds.json"
    path.write_text("old", encoding="utf-8")
    with pytest.raises(InputError, match=r"ds\.json: exists already.*--force"):
        write_text(path, "new", force=False)
    assert path.read_text(encoding="utf-8") == "old"
    write_text(str(path), "new", force=True)
    assert path.read_text(encoding="utf-8") == "new"


def test_missing_folder_and_folder_in_place_of_a_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        write_text(tmp_path / "none" / "ds.json", "x", force=False)
    with pytest.raises(InputError, match="is a folder"):
        write_text(tmp_path, "x", force=True)


@pytest.mark.parametrize("step", ["tempfile.mkstemp", "pathlib.Path.replace"])
def test_a_failed_write_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = tmp_path / "ds.json"
    path.write_text("old", encoding="utf-8")

    def fail(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(step, fail)
    with pytest.raises(InputError, match=r"ds\.json: cannot be written: Permission denied"):
        write_text(path, "new", force=True)
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_text(encoding="utf-8") == "old"
