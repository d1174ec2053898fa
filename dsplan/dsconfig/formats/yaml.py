"""Writing the YAML that accelerate reads, with the library that it reads it with."""

from __future__ import annotations

import sys
from collections.abc import Mapping

Scalar = str | int | bool | None


def yaml_text(document: Mapping[str, Scalar | Mapping[str, Scalar]]) -> str:
    """``document`` as YAML, in the order of its keys, a value to a line."""
    import yaml  # only needed for this one format

    plain = {key: dict(value) if isinstance(value, Mapping) else value for key, value in document.items()}
    return str(yaml.safe_dump(plain, sort_keys=False, width=sys.maxsize))
