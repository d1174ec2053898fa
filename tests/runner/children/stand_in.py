"""What the stand-ins for runner.train share: the contract of a rank, without torch."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

RANK = int(os.environ["RANK"])
OUTPUT_DIR = Path(sys.argv[2])


def progress(event: dict[str, Any]) -> None:
    with (OUTPUT_DIR / f"progress-{RANK}.jsonl").open("a") as file:
        file.write(json.dumps(event) + "\n")


def write(name: str, document: dict[str, Any]) -> None:
    temporary = OUTPUT_DIR / f".{name}.tmp"
    temporary.write_text(json.dumps(document))
    temporary.replace(OUTPUT_DIR / name)


def failure(kind: str, message: str) -> None:
    write(f"failure-{RANK}.json", {"kind": kind, "phase": "backward", "message": message})


def record() -> None:
    names = (
        "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "CUDA_VISIBLE_DEVICES", "DS_ACCELERATOR", "SECRET",
    )  # fmt: skip
    argv = sys.argv[1:]
    write(f"rank-{RANK}.json", {"rank": RANK, "argv": argv, "env": {name: os.environ.get(name) for name in names}})
