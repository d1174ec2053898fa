"""runner.shared_memory: what DeepSpeed's CPU collectives leave is removed, and only that."""

from __future__ import annotations

import os
from pathlib import Path

from runner.shared_memory import forget


def test_the_buffers_of_the_run_are_removed_and_no_others(tmp_path: Path) -> None:
    prefix = f"deepspeed_allreduce_buffer_{os.getuid()}_127.0.0.1"
    for name in (f"{prefix}_29500_0", f"{prefix}_29500_1", f"{prefix}_29501_0", "another"):
        (tmp_path / name).touch()
    forget(29500, (0, 1, 2), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["another", f"{prefix}_29501_0"]
