"""DeepSpeed's operators that are compiled at first use: saying so, and not waiting for a compiler that is gone."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

#: What a person would call the operators that a run may need, by DeepSpeed's name.
OPERATORS = {
    "cpu_adam": "CPU Adam",
    "cpu_adagrad": "CPU Adagrad",
    "cpu_lion": "CPU Lion",
    "fused_adam": "Adam",
    "fused_lion": "Lion",
    "deepspeed_shm_comm": "communication over shared memory",
    "async_io": "access to NVMe",
}
#: A lock is abandoned when its folder has not changed for so long and nobody on this machine works there. The
#: cache of extensions may lie on a disk that other machines share; no file of an operator takes so long to compile.
ABANDONED_AFTER_S = 180.0


def announce_compilation(say: Callable[[str], None], *, back_to: Callable[[], str]) -> None:
    """Have DeepSpeed's builder call ``say`` before it compiles an operator, and again with ``back_to()`` after.

    An operator that an earlier run has compiled is only loaded, which takes no time worth a word. Where another
    process holds torch's lock on the operator, the wait is said too, and ends if that process is gone: torch
    itself (``torch.utils.file_baton``) would wait for ever for a compiler that was killed.
    """
    from deepspeed.ops.op_builder.builder import OpBuilder

    load = OpBuilder.jit_load

    def jit_load(self: Any, verbose: bool = True) -> Any:
        folder = extension_folder(self.name)
        if compiled(folder) and not (folder / "lock").exists():
            return load(self, verbose)
        before = back_to()
        name = OPERATORS.get(self.name, self.name)
        wait_for_other_compilers(folder, lambda: say(f"waiting for another process that compiles DeepSpeed's {name}"))
        if not compiled(folder):
            say(f"compiling DeepSpeed's {name} (only the first run does, for about a minute)")
        try:
            return load(self, verbose)
        finally:
            say(before)

    OpBuilder.jit_load = jit_load


def extension_folder(name: str) -> Path:
    """Where torch builds and keeps the operator; made when it is not there."""
    from torch.utils import cpp_extension

    return Path(cpp_extension._get_build_directory(name, False))


def compiled(folder: Path) -> bool:
    """Whether torch's cache of extensions holds the operator whose folder this is."""
    return (folder / f"{folder.name}.so").exists()


def wait_for_other_compilers(folder: Path, say_waiting: Callable[[], None], *, poll_s: float = 0.5) -> None:
    """Return when nobody holds torch's lock in ``folder``; an abandoned lock is removed.

    Ranks that come here together remove it once: they take turns by a lock of the kernel, which dies with its
    holder, and the first to build leaves a young lock of torch's for the others to see.
    """
    said = False
    while (folder / "lock").exists():
        with (folder / ".dsplan").open("w") as turn:
            fcntl.flock(turn, fcntl.LOCK_EX)
            if _abandoned(folder):
                (folder / "lock").unlink(missing_ok=True)
                return
        if not said:
            say_waiting()
            said = True
        time.sleep(poll_s)


def _abandoned(folder: Path) -> bool:
    times = [_changed_at(path) for path in folder.iterdir() if path.name != ".dsplan"]
    return time.time() - max(times, default=0.0) > ABANDONED_AFTER_S and not _at_work_in(folder)


def _changed_at(path: Path) -> float:
    """When the file was last written; now, if it has gone since it was listed: then somebody works there."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return time.time()


def _at_work_in(folder: Path) -> bool:
    """Whether a process of this machine has its working directory there, as ninja and its compilers have."""
    import psutil

    where = os.path.realpath(folder)
    for process in psutil.process_iter():
        try:
            if process.cwd() == where:
                return True
        except (psutil.Error, OSError):  # gone meanwhile, or another user's
            continue
    return False
