"""RunSpec: what one verification run is told, as the JSON file that the children read."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

SPEC_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSpec:
    """One verification run.

    Attributes:
        model: a model file (``ModelShape.to_config()``).
        ds_config: the DeepSpeed configuration, batch sizes resolved for ``gpus`` ranks; or what torch's DDP is told
            in its place (:mod:`dsplan.dsconfig.ddp`).
        sequence_length: tokens per sample.
        activation_checkpointing: ``none``, ``torch`` (not reentrant), ``torch-reentrant`` or ``deepspeed``.
        device: ``cuda``, ``hpu``, ``cpu`` or ``fake``.
        gpus: ranks, all on this machine; of a dry run, the world size that is pretended.
        steps: optimizer steps to run.
        seed: seed of weights and data.
        data: ``synthetic`` tokens or the small ``text`` that ships with mingpt.
        memory_cap_bytes: what torch's allocator may take of the device (CUDA, or pretended); None: all of it.
        rank: the rank that is dry-run; None in a real run, which has them all.
        target: fields of the Accelerator that a dry run stands for; None in a real run.
        allocator: PYTORCH_CUDA_ALLOC_CONF of a dry run.
        zero_init: stage 3 builds the model under ``deepspeed.zero.Init``; else it is built whole on the host.
        events: file in which a dry run writes every allocation; empty: none.
        devices: devices that the ranks share, in turn; None: one for each rank.
        skipped_steps: steps that a dry run skips first, as fp16 does until the loss scale has settled.
        early_release: a dry run takes it that torch's watchdog sees each collective done before its wait.
        late_release: collectives of a real run are kept from the watchdog: what they hold goes at their wait.
        force: make a dry run also with versions of torch and DeepSpeed that it is not tested with.

    Raises ValueError for ranks that cannot be, and for a dry run that is not told its rank and its target.
    """

    model: dict[str, Any]
    ds_config: dict[str, Any]
    sequence_length: int
    activation_checkpointing: str = "none"
    device: str = "cpu"
    gpus: int = 1
    steps: int = 4
    seed: int = 0
    data: str = "synthetic"
    memory_cap_bytes: int | None = None
    rank: int | None = None
    target: dict[str, Any] | None = None
    allocator: str = ""
    zero_init: bool = True
    events: str = ""
    devices: int | None = None
    skipped_steps: int = 0
    early_release: bool = False
    late_release: bool = False
    force: bool = False

    def __post_init__(self) -> None:
        if self.gpus < 1:
            raise ValueError(f"gpus: {self.gpus} is not allowed; it must be at least 1")
        if self.devices is not None and not 1 <= self.devices <= self.gpus:
            raise ValueError(f"devices: {self.devices} is not allowed; {self.gpus} ranks can share 1 to {self.gpus}")
        if self.rank is not None and not 0 <= self.rank < self.gpus:
            raise ValueError(f"rank: {self.rank} is not allowed; of {self.gpus} ranks it must be 0 to {self.gpus - 1}")
        if self.device == "fake" and (self.rank is None or self.target is None):
            raise ValueError("device: a dry run needs a rank and a target")

    @property
    def ranks(self) -> tuple[int, ...]:
        """The ranks that this run has a process, and a record, of."""
        return tuple(range(self.gpus)) if self.rank is None else (self.rank,)

    def write(self, path: Path) -> None:
        path.write_text(json.dumps({"version": SPEC_VERSION, **asdict(self)}, indent=1), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> RunSpec:
        document = json.loads(path.read_text(encoding="utf-8"))
        version = document.pop("version", None)
        if version != SPEC_VERSION:
            raise ValueError(f"{path}: run specification version {version!r}; this runner reads {SPEC_VERSION}")
        return cls(**document)
