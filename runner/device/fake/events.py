"""Writes every storage that is taken and given back as it happens: a run that dies leaves what led there.

What the lines say stands in ``dsplan/events/__init__.py``.
"""

from __future__ import annotations

import json
import threading
import weakref
from pathlib import Path
from typing import Any

import torch
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook


class Events:
    """The file of events of one rank; ``levels`` in a line are the device's, in bytes, after the event."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w", encoding="utf-8", buffering=1 << 20)
        self._number = 0
        self._modules = ModulePath()

    def taken(
        self,
        cause: Any,
        *,
        place: str,
        size_bytes: int,
        requested_bytes: int,
        dtype: str,
        stream: int,
        address: int,
        levels: tuple[int, int],
    ) -> int:
        """The event's number, by which :meth:`freed` names it."""
        return self._write(
            "alloc",
            place=place,
            size_bytes=size_bytes,
            requested_bytes=requested_bytes,
            dtype=dtype,
            stream=stream,
            address=address,
            **_levels(levels),
            **self._asked(cause),
        )

    def freed(self, number: int, *, place: str, size_bytes: int, levels: tuple[int, int]) -> None:
        self._write("free", of=number, place=place, size_bytes=size_bytes, **_levels(levels))

    def out_of_memory(self, cause: Any, *, requested_bytes: int, stream: int, levels: tuple[int, int]) -> None:
        self._write("oom", requested_bytes=requested_bytes, stream=stream, **_levels(levels), **self._asked(cause))
        self._file.flush()

    def phase_began(self, *, levels: tuple[int, int]) -> None:
        self._write("phase_begin", **_levels(levels))

    def phase_ended(self, step: str, phase: str, *, levels: tuple[int, int]) -> None:
        self._write("phase_end", step=step, phase=phase, **_levels(levels))
        self._file.flush()

    def _asked(self, cause: Any) -> dict[str, str]:
        return {
            "module": self._modules.now,
            "operator": cause.operator,
            "function": cause.function,
            "where": cause.where,
        }

    def _write(self, action: str, **values: Any) -> int:
        number = self._number
        self._number += 1
        self._file.write(json.dumps({"event": number, "action": action, **values}) + "\n")
        return number


def _levels(levels: tuple[int, int]) -> dict[str, int]:
    return {"allocated_bytes": levels[0], "reserved_bytes": levels[1]}


class ModulePath:
    """The path of the module whose forward pass is under way in this thread, also when it is recomputed.

    Empty outside of forward passes. Hooks of all modules come before a module's own ones, so that what stage 3
    gathers for a module is counted as its.
    """

    def __init__(self) -> None:
        self._names: weakref.WeakKeyDictionary[torch.nn.Module, str] = weakref.WeakKeyDictionary()
        self._here = threading.local()
        register_module_forward_pre_hook(self._enter)
        register_module_forward_hook(self._leave, always_call=True)

    @property
    def now(self) -> str:
        path: list[str] = getattr(self._here, "path", [])
        return path[-1] if path else ""

    def _enter(self, module: torch.nn.Module, inputs: Any) -> None:  # noqa: ARG002
        if not hasattr(self._here, "path"):
            self._here.path = []
        if module not in self._names:
            for name, inner in module.named_modules():  # the outermost is DeepSpeed's engine, which holds the model
                self._names.setdefault(inner, name.removeprefix("module").removeprefix("."))
        self._here.path.append(self._names[module])

    def _leave(self, module: torch.nn.Module, inputs: Any, output: Any) -> None:  # noqa: ARG002
        if self._here.path:
            self._here.path.pop()
