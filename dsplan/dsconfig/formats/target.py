"""What a format starts from, and what comes out of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsplan.dsconfig.launch import SCRIPT
from dsplan.hardware import Cluster
from dsplan.model import ModelShape
from dsplan.plan import Plan

#: Name of the DeepSpeed configuration where none is given.
CONFIG_NAME = "ds_config.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One plan to be written.

    Attributes:
        document: the plan as DeepSpeed itself reads it (:func:`dsplan.dsconfig.emit.emit`).
        output: the file that was asked for; a format derives the names of the others from it.
        script: the training script that launch lines name.
    """

    plan: Plan
    model: ModelShape
    cluster: Cluster
    document: Mapping[str, Any]
    output: Path = Path(CONFIG_NAME)
    script: str = SCRIPT


@dataclass(frozen=True, slots=True, kw_only=True)
class EmittedFile:
    """A file and its text, ready to be written."""

    path: Path
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Emission:
    """A plan in one format.

    Attributes:
        format: the name that ``--format`` takes.
        config: the DeepSpeed configuration as this format has it.
        config_path: its file.
        files: every file, the DeepSpeed configuration first.
        main: what ``--stdout`` prints: the text that the format is named for.
        launch: launcher -> the line that starts the job; never empty, the usual one first.
        notes: what the reader of the files has to know, one sentence or two each.
    """

    format: str
    config: Mapping[str, Any]
    config_path: Path
    files: tuple[EmittedFile, ...]
    main: str
    launch: Mapping[str, str]
    notes: tuple[str, ...] = ()


def json_text(document: Mapping[str, Any]) -> str:
    """``document`` as the text of a JSON file."""
    return json.dumps(document, indent=2) + "\n"
