"""runner.compiling: the user hears of an operator that is compiled, and no abandoned lock holds a run up."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("deepspeed")

from deepspeed.ops.op_builder.builder import OpBuilder

from runner import compiling

COMPILING = "compiling DeepSpeed's CPU Adam (only the first run does, for about a minute)"
WAITING = "waiting for another process that compiles DeepSpeed's CPU Adam"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "cpu_adam"
    made.mkdir()
    return made


def lock(folder: Path, *, age_s: float) -> Path:
    path = folder / "lock"
    path.touch()
    os.utime(path, (time.time() - age_s,) * 2)
    return path


def load_announced(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    heard: list[str] = []

    class Builder:
        name = "cpu_adam"

    monkeypatch.setattr(OpBuilder, "jit_load", lambda _self, _verbose=True: "loaded")
    monkeypatch.setattr(compiling, "extension_folder", lambda _: folder)
    compiling.announce_compilation(heard.append, back_to=lambda: "building")
    jit_load: Any = OpBuilder.jit_load
    assert jit_load(Builder()) == "loaded"
    return heard


def test_loading_is_not_announced(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "cpu_adam.so").touch()
    assert load_announced(folder, monkeypatch) == []


def test_compiling_is_announced(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_announced(folder, monkeypatch) == [COMPILING, "building"]


def test_the_lock_of_a_compiler_that_was_killed_is_removed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = lock(folder, age_s=compiling.ABANDONED_AFTER_S + 1)
    assert load_announced(folder, monkeypatch) == [COMPILING, "building"]
    assert not left.exists()


def test_a_compiler_at_work_is_waited_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = lock(folder, age_s=0)
    end = threading.Timer(1.0, lambda: ((folder / "cpu_adam.so").touch(), held.unlink()))
    end.start()
    assert load_announced(folder, monkeypatch) == [WAITING, "building"]
    assert not held.exists()


def test_a_file_that_goes_while_the_folder_is_read_is_a_sign_of_work(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The compiler may remove its lock, or ninja a temporary file, between the listing and the look at it."""
    listed = [lock(folder, age_s=compiling.ABANDONED_AFTER_S + 1), folder / "gone.o"]
    monkeypatch.setattr(Path, "iterdir", lambda _: iter(listed))
    assert not compiling._abandoned(folder)


def test_an_old_lock_of_a_compiler_that_still_runs_is_kept(folder: Path) -> None:
    lock(folder, age_s=compiling.ABANDONED_AFTER_S + 1)
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], cwd=folder) as worker:
        try:
            assert not compiling._abandoned(folder)
        finally:
            worker.kill()
    assert compiling._abandoned(folder)
