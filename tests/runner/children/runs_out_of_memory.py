"""The last rank runs out of memory; the first one fails a little earlier, of a lost connection."""

from __future__ import annotations

import os

from tests.runner.children import stand_in

last = int(os.environ["WORLD_SIZE"]) - 1 == stand_in.RANK
stand_in.failure(
    "out_of_memory" if last else "error",
    "OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB" if last else "RuntimeError: Connection closed",
)
raise SystemExit(1)
