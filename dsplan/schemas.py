"""Finding and loading the JSON Schemas that ship with dsplan."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any, cast

_PACKAGE = Path(__file__).resolve().parent
#: An installed wheel carries the schemas inside the package, a checkout beside it.
FOLDERS = (_PACKAGE / "schemas", _PACKAGE.parent / "schemas")


@cache
def schema(name: str) -> dict[str, Any]:
    """The schema ``NAME.schema.json``; callers must not change the returned dictionary.

    Raises:
        FileNotFoundError: no folder of :data:`FOLDERS` holds it; the installation is broken.
    """
    for folder in FOLDERS:
        path = folder / f"{name}.schema.json"
        if path.is_file():
            return cast(dict[str, Any], json.loads(path.read_text(encoding="utf-8")))
    raise FileNotFoundError(f"{name}.schema.json is in none of {', '.join(str(folder) for folder in FOLDERS)}")
