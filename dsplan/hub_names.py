"""Decoders by the names that the Hugging Face Hub gives them: ``Qwen/Qwen2.5-7B`` is the catalogue's ``qwen2.5-7b``.

Nothing is asked of the network: the names are those that the catalogue gives as the source of its figures.
"""

from __future__ import annotations

import json
import re
from functools import cache
from importlib.resources import files
from pathlib import Path

from dsplan.errors import InputError, nearest

#: ``OWNER/NAME`` as the Hub writes it; a path that begins with a dot or ends with .json is none.
_HUB_NAME = re.compile(r"(?!\.)[\w.-]+/[\w.-]+(?<!\.json)", re.ASCII)
_SOURCE = re.compile(r"Hugging Face, ([\w.-]+/[\w.-]+)", re.ASCII)


@cache
def hub_names() -> dict[str, str]:
    """The catalogue's names by those of the Hub, as the Hub spells them (``dsplan/catalog/decoders.json``, source)."""
    text = (files("dsplan") / "catalog" / "decoders.json").read_text(encoding="utf-8")
    found = ((_SOURCE.match(entry["source"]), entry["name"]) for entry in json.loads(text)["decoders"])
    return {source[1]: name for source, name in found if source is not None}


def looks_like_hub_name(name: str) -> bool:
    """Whether ``name`` is written as the Hub writes a model's name."""
    return _HUB_NAME.fullmatch(name) is not None


def published_name(name: str) -> str | None:
    """The catalogue's name of the model that the Hub calls ``name``.

    None where ``name`` is not written as the Hub writes one, or there is such a file or folder.

    Raises:
        InputError: the catalogue has no such model, with the nearest that it has.
    """
    if not looks_like_hub_name(name) or Path(name).exists():
        return None
    known = {hub.casefold(): own for hub, own in hub_names().items()}.get(name.casefold())
    if known is not None:
        return known
    near = near_hub_name(name)
    hint = f"did you mean {' or '.join(near)}? else " if near else ""
    raise InputError(
        f"model: {name!r} is neither a file or folder here nor in the catalogue, and the Hub is not asked; {hint}"
        "download its config.json and give that"
    )


def near_hub_name(name: str) -> list[str]:
    """The catalogue's names of the models that are called almost so, best first."""
    own = hub_names()
    by_hub = nearest(name, own)
    # A fine-tune of somebody else's is called almost as the model that it was made of.
    tails = {hub.partition("/")[2]: own[hub] for hub in own}
    by_tail = nearest(name.partition("/")[2], tails)
    return list(dict.fromkeys([*(own[hub] for hub in by_hub), *(tails[tail] for tail in by_tail)]))[:3]
