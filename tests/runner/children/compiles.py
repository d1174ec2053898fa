"""A rank that holds a lock, as torch does while it compiles an operator."""

from __future__ import annotations

import time

from tests.runner.children import stand_in

lock = stand_in.OUTPUT_DIR / "lock"
try:
    lock.touch()
    stand_in.progress({"event": "stage", "text": "compiling"})
    time.sleep(600)
finally:
    lock.unlink()
