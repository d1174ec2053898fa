"""dsplan: which DeepSpeed configuration trains your model on your machines, to the byte.

``dsplan.api`` is the Python interface (docs/api.md); it and ``ModelShape`` are loaded when they are first asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"
__all__ = ["ModelShape", "__version__", "api"]


def __getattr__(name: str) -> Any:
    if name == "api":
        return import_module(f"{__name__}.api")
    if name == "ModelShape":
        return getattr(import_module(f"{__name__}.model"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
