"""Rank 0 catches an exception of its own, says so and leaves; another rank would wait for it for ever."""

from __future__ import annotations

import time

from tests.runner.children import stand_in

stand_in.progress({"event": "step", "step": 2, "steps": 4})
if stand_in.RANK == 0:
    stand_in.failure("error", "ValueError: a planted fault")
    raise ValueError("a planted fault")
time.sleep(600)
