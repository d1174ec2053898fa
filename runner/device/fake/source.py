"""Whose line of code is running: the nearest of DeepSpeed, torch.optim, the model or the training loop."""

from __future__ import annotations

import sys
from types import CodeType, FrameType

AUTOGRAD = ("autograd", "autograd")

#: Packages that ask for memory on their own account, by where their files lie.
_OWNERS = (
    *("deepspeed/", "mingpt/", "transformers/models/", "transformers/integrations/", "transformers/loss/"),
    *("torch/optim/", "torch/utils/checkpoint.py", "runner/train.py", "tests/"),
)
#: Files of theirs that only pass a request on.
_MESSENGERS = ("deepspeed/utils/nvtx.py", "deepspeed/comm/", "deepspeed/accelerator/", "runner/device/fake/")

#: By file: code objects of different files can be equal.
_known: dict[str, str | None] = {}


def caller(depth: int = 1) -> tuple[str, str]:
    """(function, ``file:line``) of the nearest owner above the caller's frame ``depth``.

    A backward pass that torch drives itself is ``AUTOGRAD``: the operator then says more than the line that
    began the pass.
    """
    return named(*owner(depth + 1))


def owner(depth: int = 1) -> tuple[CodeType | None, int]:
    """The code and the line of the nearest owner, as :func:`caller` counts; (None, 0) for autograd's engine."""
    frame: FrameType | None = sys._getframe(depth + 1)
    while frame is not None:
        filename = frame.f_code.co_filename
        try:
            found = _known[filename]
        except KeyError:
            found = _known[filename] = _owner(filename)
        if found is not None:
            return (frame.f_code, frame.f_lineno) if found else (None, 0)
        frame = frame.f_back
    return None, 0  # a thread of its own, with no Python below


def named(code: CodeType | None, line: int) -> tuple[str, str]:
    """What :func:`caller` says of a code and a line that :func:`owner` has found."""
    if code is None:
        return AUTOGRAD
    return getattr(code, "co_qualname", code.co_name), f"{_known[code.co_filename]}:{line}"  # 3.10 has no co_qualname


def _owner(filename: str) -> str | None:
    """What to call the file; empty for autograd's engine; None for a file that owns nothing."""
    path = _in_package(filename.replace("\\", "/"))
    if path == "torch/autograd/graph.py":
        return ""
    if path.startswith(_MESSENGERS) or not path.startswith(_OWNERS):
        return None
    return path


def _in_package(path: str) -> str:
    """``path`` from its package on. By where packages are imported from: any folder above may be called deepspeed."""
    entries = (entry.replace("\\", "/").rstrip("/") + "/" for entry in sys.path if entry)
    roots = [entry for entry in entries if path.startswith(entry)]
    if roots:
        return path[len(max(roots, key=len)) :]
    starts = [path.rfind(f"/{part}") for part in (*_OWNERS, *_MESSENGERS, "torch/")]  # imported in another way
    return path[max(starts) + 1 :]
