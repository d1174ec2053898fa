"""A rank that fails before it can write a failure file."""

from __future__ import annotations

raise ImportError("a planted fault")
