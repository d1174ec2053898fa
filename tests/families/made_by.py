"""What made a dry run that is kept: the code that it ran, and what it was told, so that an old one can be told.

A dry run depends on the runner and on what the runner imports of this repository, on the specification, and on torch,
DeepSpeed and transformers. Of the first two a fingerprint is kept with it. Comments, blank lines and docstrings are
left out of it, and the history of the repository too: the same code gives the same fingerprint in every checkout.
"""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
#: Where a rank begins, and where its environment is made.
ENTRIES = ("runner.train", "runner.environment")
OWN = ("runner", "dsplan", "mingpt")
PACKAGES = ("torch", "deepspeed", "transformers")
_DIGITS = 12


def made_by(told: Any) -> dict[str, str]:
    """What makes a dry run here and now: ``fingerprint`` of the code and of ``told``, and each package's version.

    Args:
        told: what the run is told, of what JSON knows.
    """
    text = json.dumps([_code(ROOT), told], sort_keys=True)
    return {"fingerprint": hashlib.sha256(text.encode()).hexdigest()[:_DIGITS], **_versions()}


def is_older(kept: Mapping[str, str] | None, told: Any) -> bool:
    """Whether what is kept was made by other code, other versions or of something else than ``told``.

    Where a package is not installed, as where dsplan only plans, its version is not compared.
    """
    now = made_by(told)
    return kept is None or any(kept.get(key) != value for key, value in now.items())


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


@cache
def _code(root: Path) -> str:
    """A digest of the modules that a rank of a run can import of this repository, by name and by their lines."""
    digest = hashlib.sha256()
    for name, path in sorted(modules(root).items()):
        digest.update("\n".join([name, *code_lines(path.read_text(encoding="utf-8")), ""]).encode())
    return digest.hexdigest()


def modules(root: Path) -> dict[str, Path]:
    """The modules of this repository that the entries import, also inside functions, and what those import; by name.

    A package counts where something is imported from it, and not for a module in it.
    """
    found: dict[str, Path] = {}
    waiting = list(ENTRIES)
    while waiting:
        name = waiting.pop()
        path = _path(root, name)
        if name in found or path is None:
            continue
        found[name] = path
        waiting += _imports(path)
    return found


def _path(root: Path, name: str) -> Path | None:
    """The file of a module; None: it is a name in one."""
    place = root.joinpath(*name.split("."))
    files = (place / "__init__.py", place.with_suffix(".py"))
    return next((path for path in files if path.exists()), None)


def _imports(path: Path) -> Iterator[str]:
    """What a file imports of this repository; none of its imports is relative."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        yield from (name for name in names if name.partition(".")[0] in OWN)


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def code_lines(text: str) -> list[str]:
    """The lines of a Python file that are code: no blank ones, no comments of their own line, no docstrings."""
    told: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if first is not None and _is_text(first):
                told |= set(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    lines = enumerate(text.splitlines(), start=1)
    return [line for number, line in lines if number not in told and line.strip() and not line.strip().startswith("#")]
