"""One configuration in a file, and what is known about the run that it is for."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsplan.check.finding import Edit, Finding, Rule
from dsplan.check.tree import Lines, Member, Section, find, plain
from dsplan.dsconfig.consumers import DEEPSPEED

if TYPE_CHECKING:
    from dsplan.hardware import Cluster
    from dsplan.model import ModelShape

#: The section of ZeRO's settings.
ZERO = "zero_optimization"


_NOTHING = object()


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What the command line says about the run; None is "not said".

    Attributes:
        consumer: one of :data:`dsplan.dsconfig.consumers.CONSUMERS`.
        world_size: ranks.
        model: the model; rules about sizes need it.
        cluster: the machines; the verdict needs them.
        sequence_length: tokens of a sample, for the verdict.
        notes: whether somebody reads notes, so that what takes time to say is said.
    """

    consumer: str = DEEPSPEED
    world_size: int | None = None
    model: ModelShape | None = None
    cluster: Cluster | None = None
    sequence_length: int | None = None
    notes: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """A configuration as it stands in a file.

    Attributes:
        path: the file.
        lines: the file's lines.
        root: its keys and values.
        run: what it is for.
        complete: whether a key that is not there is not given; False for excerpts and broken files.
        alone: whether the file holds this configuration and nothing else.
        title: what the configuration is called: the heading above it, or the name of its file.
        document: the same as plain values.
    """

    path: Path
    lines: Lines
    root: Section
    run: Run
    complete: bool = True
    alone: bool = True
    title: str = ""
    document: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "document", plain(self.root))

    def get(self, path: str, default: Any = None) -> Any:
        """The plain value at a dotted path; ``default`` when it is not there."""
        value: Any = self.document
        for key in path.split("."):
            if not isinstance(value, dict) or key not in value:
                return default
            value = value[key]
        return value

    def has(self, path: str) -> bool:
        """Whether there is anything at a dotted path, null too."""
        return self.get(path, _NOTHING) is not _NOTHING

    def section(self, path: str) -> dict[str, Any]:
        """The section at a dotted path; empty when it is not there or is no section."""
        value = self.get(path)
        return value if isinstance(value, dict) else {}

    def zero(self, key: str, default: Any = None) -> Any:
        """The plain value at ``key``, dotted, of ``zero_optimization``."""
        return self.get(f"{ZERO}.{key}", default)

    @property
    def tuned(self) -> bool:
        """Whether the file is one for DeepSpeed's autotuner, where a list is what to try."""
        return self.get("autotuning.enabled") is True

    @property
    def excerpt(self) -> bool:
        """Whether a document shows this configuration in part."""
        return not self.complete and not self.alone

    @property
    def stage(self) -> int | None:
        """The ZeRO stage as DeepSpeed reads it; None when it cannot be told."""
        zero = self.get(ZERO, {})
        if isinstance(zero, bool):
            return int(zero)  # runtime/zero/config.py, read_zero_config_deprecated
        stage = zero.get("stage", 0) if isinstance(zero, dict) else None
        if isinstance(stage, bool) or not isinstance(stage, int) or stage not in (0, 1, 2, 3):
            return None
        return stage

    def finding(
        self,
        rule: Rule,
        key: str,
        message: str,
        instead: str = "",
        *,
        severity: str | None = None,
        member: Member | None = None,
        on_value: bool = False,
        edit: Edit | None = None,
    ) -> Finding:
        """A finding about the dotted ``key``: at the key, at its value, or at the nearest section that is there."""
        place: Member | None = member
        path = key
        while place is None and path:
            place = find(self.root, path)
            path = path.rpartition(".")[0]
        offset = self.root.offset if place is None else place.node.offset if on_value else place.offset
        line, column = self.lines.position(offset)
        return Finding(
            path=self.path,
            line=line,
            column=column,
            rule=rule,
            severity=severity or rule.severity,
            key=key,
            message=message,
            instead=instead,
            edit=edit,
        )
