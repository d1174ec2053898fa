"""A rank that succeeds."""

from __future__ import annotations

from tests.runner.children import stand_in

stand_in.progress({"event": "stage", "text": "loading"})
stand_in.progress({"event": "step", "step": 1, "steps": 1})
stand_in.record()
