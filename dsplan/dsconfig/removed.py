"""Keys that older DeepSpeed releases read and 0.19.8 does not, and keys that it reads under protest.

The schema is the one place that says which: ``x-removed-keys`` (with the last release that reads the key, the first
that refuses it, and what to do instead) and ``deprecated`` with ``x-successor``. Source: DeepSpeed
``runtime/config.py`` (``_REMOVED_TOP_LEVEL_CONFIG_KEYS``, ``_REMOVED_ZERO_CONFIG_KEYS``), ``runtime/engine.py``
(``max_grad_norm``), ``compile/config.py`` (extra="forbid") and the releases' own parsers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from dsplan.dsconfig import DEEPSPEED_VERSION
from dsplan.dsconfig.schema_keys import every_key, root
from dsplan.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class RemovedKey:
    """A key that 0.19.8 does not read.

    Attributes:
        key: dotted.
        since: first release that reads it; None for one that is older than 0.9.0.
        last: last release that reads it; None when no release from 0.9.0 on does.
        refused: first release of those that stop at it up to now; None where it is ignored without a word.
        ignored: first release that ignores a key which took another name; None where it is refused.
        instead: what to do; for an ignored key the dotted key that took its place.
    """

    key: str
    since: str | None
    last: str | None
    refused: str | None
    ignored: str | None
    instead: str


@cache
def removed_keys() -> Mapping[str, RemovedKey]:
    """Every key that 0.19.8 does not read and an older release did, or that a reader may expect."""
    return {
        key: RemovedKey(
            key=key,
            since=entry.get("x-since"),
            last=entry.get("last"),
            refused=entry.get("refused"),
            ignored=entry.get("ignored"),
            instead=entry["instead"],
        )
        for key, entry in root()["x-removed-keys"].items()
    }


@cache
def deprecated_keys() -> Mapping[str, str]:
    """Every key that DeepSpeed reads under protest, or for no effect, and what to write instead."""
    return {key: rules["x-successor"] for key, rules in every_key() if rules.get("deprecated")}


class _Refused(Mapping[str, str]):
    """The keys that 0.19.8 refuses; the schema is loaded at the first look, not when this module is."""

    def __getitem__(self, key: str) -> str:
        return _refused()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(_refused())

    def __len__(self) -> int:
        return len(_refused())


@cache
def _refused() -> Mapping[str, str]:
    return {key: entry.instead for key, entry in removed_keys().items() if entry.refused is not None}


#: Dotted key that 0.19.8 refuses -> what to do instead.
REMOVED_KEYS: Mapping[str, str] = _Refused()


def require_not_removed(document: Mapping[str, Any]) -> None:
    """Raise InputError for the first key of ``document`` that DeepSpeed refuses since some release."""
    for key, instead in REMOVED_KEYS.items():
        section: Any = document
        for part in key.split("."):
            if not isinstance(section, Mapping) or part not in section:
                break
            section = section[part]
        else:
            raise InputError(f"{key}: DeepSpeed {DEEPSPEED_VERSION} refuses it; {instead}")
