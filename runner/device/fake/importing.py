"""Importing DeepSpeed with another accelerator in place: it builds classes and constants from the one it finds then."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from typing import Any


def import_deepspeed(accelerator: Callable[[], Any] | None) -> None:
    """Import DeepSpeed, whose accelerator is what ``accelerator`` returns; None leaves it what it would be.

    ``import deepspeed`` chooses an accelerator before anybody could set one, so ``deepspeed.accelerator`` is
    imported first, below a package that has not been run yet.

    Raises:
        RuntimeError: DeepSpeed was imported earlier.
    """
    if "deepspeed" in sys.modules:
        raise RuntimeError("DeepSpeed was imported before the pretend accelerator could take its place")
    spec = importlib.util.find_spec("deepspeed")
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError("deepspeed is not installed")
    package = importlib.util.module_from_spec(spec)
    sys.modules["deepspeed"] = package
    if accelerator is not None:
        from deepspeed.accelerator.real_accelerator import set_accelerator

        set_accelerator(accelerator())
    spec.loader.exec_module(package)
