"""A live module as a model file: ``python -m runner.meta PACKAGE.FILE:FACTORY``, a line of JSON on stdout.

The factory takes no arguments and returns an ``nn.Module``; it is called on the meta device, so that a model of any
size takes no memory.
"""

from __future__ import annotations

import importlib
import json
import sys
from typing import Any

from dsplan.families.module import described


def factory_of(text: str) -> Any:
    """The function that ``PACKAGE.FILE:FACTORY`` names.

    Raises:
        ValueError: it is not of that form, or there is no such module or function.
    """
    name, colon, function = text.partition(":")
    if not colon or not name or not function.isidentifier():
        raise ValueError(f"--module: {text!r} is not allowed; it must be PACKAGE.FILE:FACTORY")
    try:
        found = getattr(importlib.import_module(name), function, None)
    except ModuleNotFoundError as error:
        raise ValueError(f"--module: there is no module {error.name} here") from error
    if not callable(found):
        raise ValueError(f"--module: {name} has no function {function}")
    return found


def main() -> int:
    import torch

    text = sys.argv[1]
    printed, sys.stdout = sys.stdout, sys.stderr  # what the user's own code prints is no answer
    try:
        with torch.device("meta"):
            module = factory_of(text)()
        if not isinstance(module, torch.nn.Module):
            raise ValueError(f"--module: {text} gives a {type(module).__name__}, not a torch.nn.Module")
        answer = described(module, text)
    except Exception as error:
        lines = str(error).splitlines()
        said = (
            str(error) if isinstance(error, ValueError) and lines else f"{type(error).__name__}: {''.join(lines[:1])}"
        )
        answer = {"error": said if said.startswith("--module") else f"--module: {text} failed: {said}"}
    printed.write(json.dumps(answer) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
