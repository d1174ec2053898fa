"""Profiles by name: the user's own (``dsplan verify --calibrate``), those that ship with dsplan, the nominal ones.

The user's lie as ``NAME.json`` in :func:`user_folder`, the shipped ones in ``dsplan/catalog/profiles``, under the
catalogue's name of the device that they were measured on.
"""

from __future__ import annotations

import json
import os
import re
from functools import cache
from importlib.resources import files
from pathlib import Path

from dsplan.errors import InputError, choice
from dsplan.timing.profile import Profile, profile_of, read_profile

#: The name that asks for data sheets where a measured profile would be taken.
NOMINAL = "nominal"
#: Stands for the nominal profile of whatever device is planned for (:func:`dsplan.timing.rates.machine`).
DATA_SHEETS = Profile(name=NOMINAL, label="data sheets", document={})
#: Names another folder than :func:`user_folder`'s.
VARIABLE = "DSPLAN_PROFILES"
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*", re.IGNORECASE)
_SUFFIX = ".json"


def user_folder() -> Path:
    """Where the user's profiles lie: DSPLAN_PROFILES, else dsplan/profiles in XDG_DATA_HOME (~/.local/share)."""
    named = os.environ.get(VARIABLE)
    if named:
        return Path(named)
    base = os.environ.get("XDG_DATA_HOME")
    return (Path(base) if base else Path.home() / ".local" / "share") / "dsplan" / "profiles"


def user_file(name: str) -> Path:
    """The file of the user's profile ``name``.

    Raises:
        InputError: a name that is no file's, or that means something else.
    """
    if not _NAME.fullmatch(name) or name.endswith(_SUFFIX) or name == NOMINAL:
        raise InputError(
            f"--name: {name!r} is not allowed; letters, digits, '.', '_' and '-', such as a100-node, but not "
            f"{NOMINAL!r} nor the suffix {_SUFFIX}"
        )
    return user_folder() / f"{name}{_SUFFIX}"


@cache
def shipped_names() -> tuple[str, ...]:
    """The profiles that ship with dsplan."""
    folder = files("dsplan") / "catalog" / "profiles"
    if not folder.is_dir():
        return ()
    return tuple(sorted(entry.name.removesuffix(_SUFFIX) for entry in folder.iterdir() if entry.name.endswith(_SUFFIX)))


@cache
def shipped(name: str) -> Profile | None:
    """The shipped profile of the catalogued device ``name``; None where none was measured. A test validates it."""
    if name not in shipped_names():
        return None
    text = (files("dsplan") / "catalog" / "profiles" / f"{name}{_SUFFIX}").read_text(encoding="utf-8")
    return profile_of(json.loads(text))


def find_profile(value: str) -> Profile:
    """The profile that ``value`` names: a file, else one of the user's, else a shipped one; or the data sheets.

    Raises:
        InputError: there is none, with the nearest names; or a file that is no profile.
    """
    if value.casefold() == NOMINAL:
        return DATA_SHEETS
    path = Path(value)
    if len(path.parts) > 1 or value.endswith(_SUFFIX) or path.is_file():
        return read_profile(path)
    own = sorted(entry.stem for entry in user_folder().glob(f"*{_SUFFIX}")) if user_folder().is_dir() else []
    name = choice("--profile", value, (*own, *shipped_names(), NOMINAL))
    if name in own:
        return read_profile(user_folder() / f"{name}{_SUFFIX}")
    return shipped(name) or DATA_SHEETS
