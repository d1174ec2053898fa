"""What the tests of this folder share: targets, written files, and the real readers in a subprocess."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from dsplan.dsconfig.emit import emit
from dsplan.dsconfig.formats import render
from dsplan.dsconfig.formats.target import Emission, Target
from dsplan.dsconfig.formats.together import write_together
from dsplan.hardware import Cluster
from dsplan.plan import Plan
from dsplan.workload import Workload
from tests.dsconfig.strategies import CLUSTER, MODEL

ROOT = Path(__file__).parents[3]
ONE_NODE = Cluster(gpus_per_node=4)


def target(
    plan: Plan | None = None, cluster: Cluster = CLUSTER, output: str = "ds_config.json", **fields: Any
) -> Target:
    """``plan`` for the tests' model, or stage 0 with 2 samples and 3 micro batches a step."""
    if plan is None:
        plan = Plan(name="p", workload=Workload(micro_batch_size=2, gradient_accumulation_steps=3))
    document = emit(plan, MODEL, cluster)
    return Target(plan=plan, model=MODEL, cluster=cluster, document=document, output=Path(output), **fields)


def written(format_name: str, what: Target, folder: Path) -> Emission:
    """``what`` in that format, its files in ``folder``; the names in the files are those without the folder."""
    emission = render(format_name, what)
    folder.mkdir(exist_ok=True)
    here = Path.cwd()
    os.chdir(folder)
    try:
        write_together(emission.files, force=False)
    finally:
        os.chdir(here)
    return emission


def answers(reader: str, folders: list[Path], module: str = "resolve", **variables: str) -> list[dict[str, Any]]:
    """What transformers or accelerate makes of the files in each folder, or why nothing, in one subprocess."""
    command = [sys.executable, "-m", f"tests.dsconfig.formats.{module}", reader, *map(str, folders)]
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("ACCELERATE_", "HF_"))}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folders[0]), "PYTHONPATH": str(ROOT), **variables}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=480, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line for line in done.stdout.splitlines() if line.startswith('{"folder"')]  # engines print there too
    records: list[dict[str, Any]] = [json.loads(line) for line in lines]
    assert [record["folder"] for record in records] == [str(folder) for folder in folders]
    return records


def resolved(reader: str, folders: list[Path], module: str = "resolve", **variables: str) -> list[Any]:
    """The same, where nothing is refused."""
    records = answers(reader, folders, module, **variables)
    assert [record["error"] for record in records if record["error"]] == []
    return [record["resolved"] for record in records]


def as_planned(config: dict[str, Any], document: dict[str, Any]) -> bool:
    """Whether ``config`` says what ``document`` does.

    accelerate silences DeepSpeed's own log lines, and says of the precision that is not used that it is off.
    """
    config, document = dict(config), dict(document)
    assert config.pop("steps_per_print") == float("inf")
    del document["steps_per_print"]
    for name in ("fp16", "bf16"):
        if name not in document:
            assert config.pop(name) == {"enabled": False}
    return config == document
