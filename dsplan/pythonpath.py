"""PYTHONPATH for a child of this interpreter: it must find the packages where this process found them."""

from __future__ import annotations

import importlib.util
import os
import sysconfig
from collections.abc import Iterable
from pathlib import Path


def pythonpath(packages: Iterable[str], current: str = "") -> str:
    """A PYTHONPATH with the folders that hold ``packages`` first, then the entries of ``current``.

    The entries become absolute, because the child is started in another folder. A package that cannot be
    found is left out: the child's own import error says which one.
    """
    # PYTHONPATH comes before the standard library, and the same interpreter finds its site-packages anyway.
    found_anyway = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    entries = [folder for folder in map(_folder, packages) if folder is not None and folder not in found_anyway]
    entries += [str(Path(entry).absolute()) for entry in current.split(os.pathsep) if entry]
    return os.pathsep.join(dict.fromkeys(entries))


def _folder(package: str) -> str | None:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        return None
    return str(Path(spec.origin).absolute().parent.parent)
