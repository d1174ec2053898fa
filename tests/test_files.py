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


def test_a_device_or_a_pipe_is_no_target(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(InputError, match=r"pipe: is a device or a pipe, not a file"):
        write_text(pipe, "x", force=True)
    assert pipe.is_fifo(), "a rename would have put a file in its place: /dev/null, for root"


def test_a_link_stays_and_its_file_is_written(tmp_path: Path) -> None:
    (tmp_path / "configs").mkdir()
    target = tmp_path / "configs" / "zero3.json"
    link = tmp_path / "ds.json"
    link.symlink_to(target)
    write_text(link, "new", force=False)
    assert link.is_symlink()
    assert target.read_text(encoding="utf-8") == "new"
    with pytest.raises(InputError, match="exists already"):
        write_text(link, "newer", force=False)
    write_text(link, "newer", force=True)
    assert link.is_symlink()
    assert target.read_text(encoding="utf-8") == "newer"
    assert list(target.parent.iterdir()) == [target]


def test_a_link_that_leads_nowhere_is_one_line(tmp_path: Path) -> None:
    circle = tmp_path / "circle"
    circle.symlink_to(circle)
    with pytest.raises(InputError, match="is a link in a circle"):
        write_text(circle, "x", force=True)
    astray = tmp_path / "astray"
    astray.symlink_to(tmp_path / "none" / "ds.json")
    with pytest.raises(InputError, match="does not exist; make it first"):
        write_text(astray, "x", force=True)


def test_a_dash_is_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="-: is no name for a file"):
        write_text("-", "x", force=True)
    assert list(tmp_path.iterdir()) == []
