"""Shared memory that DeepSpeed's CPU collectives leave behind."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

#: Where Linux keeps what shm_open(3) makes.
FOLDER = Path("/dev/shm")
ADDRESS = "127.0.0.1"


def forget(port: int, ranks: Sequence[int], folder: Path = FOLDER) -> None:
    """Remove the buffers of the run that met at ``port``: 66 MiB of memory for each rank, until the machine restarts.

    DeepSpeed makes one for each rank and never unlinks it (csrc/cpu/comm/shm.cpp, shm_initialize, which also names it).
    """
    for rank in ranks:
        with suppress(OSError):
            (folder / f"deepspeed_allreduce_buffer_{os.getuid()}_{ADDRESS}_{port}_{rank}").unlink()
