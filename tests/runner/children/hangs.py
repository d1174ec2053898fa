"""A rank that hangs after its first step."""

from __future__ import annotations

import time

from tests.runner.children import stand_in

stand_in.progress({"event": "step", "step": 1, "steps": 4})
time.sleep(600)
