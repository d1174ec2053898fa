"""How much above its peak of allocated memory a run needs: ``python -m tests.gpu.caps OUTPUT.json``.

Runs single-rank cases under an allocator cap of the predicted peak times a factor, several at a time on
one GPU, and records which survive. Under pressure the allocator gives back what it cached and tries
again, so this is what a verdict has to allow for, not the reserved memory of an idle card.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from dsplan.catalogue import accelerator
from dsplan.dsconfig.emit import emit
from dsplan.hardware import Cluster
from dsplan.prediction import predict
from tests.gpu.cases import FIRST, SECOND, Case
from tests.gpu.header import header, write_rows

FACTORS = (1.02, 1.05, 1.10, 1.20)
PARALLEL = 6
STEPS = 3
MADE_BY = "python -m tests.gpu.caps"


def command(case: Case, cap: int, folder: Path) -> list[str]:
    model = case.model_shape()
    (folder / "config.json").write_text(json.dumps(model.to_config()))
    (folder / "ds.json").write_text(json.dumps(emit(case.plan(), model, Cluster(gpus_per_node=1))))
    return [
        *(sys.executable, "-m", "dsplan", "verify", "--model", str(folder / "config.json")),
        *("--ds-config", str(folder / "ds.json"), "--seq-len", str(case.sequence_length)),
        *("--activation-checkpointing", case.checkpointing, "--device", "cuda", "--gpus", "1"),
        *("--steps", str(STEPS), "--timeout", "180", "--cap", str(cap), "-o", str(folder / "record.json")),
    ]


def _head(folder: Path, known: dict[str, Any]) -> dict[str, Any]:
    """The header by the record of a run that lived, or the one that is known."""
    path = folder / "record.json"
    if known["device"] or not path.exists():
        return known
    record = json.loads(path.read_text(encoding="utf-8"))
    return header(MADE_BY, record["device"]["name"], record["versions"])


def main() -> None:
    output, seconds = Path(sys.argv[1]), float(sys.argv[2])
    begun = time.monotonic()
    waiting: list[tuple[Case, float, int]] = []
    for case in (case for case in (*FIRST, *SECOND) if case.gpus == 1):
        prediction = predict(case.model_shape(), case.plan(), accelerator("h200"), 1)
        peak = max(step.peak_bytes for step in (prediction.init, *prediction.steps))
        if peak < 20 * 2**30:
            waiting += [(case, factor, round(peak * factor)) for factor in FACTORS]
    running: list[tuple[Case, float, int, subprocess.Popen[bytes], Path]] = []
    results = []
    head = header(MADE_BY, "", {})
    while waiting or running:
        if waiting and len(running) < PARALLEL and time.monotonic() - begun < seconds:
            case, factor, cap = waiting.pop(0)
            folder = Path(tempfile.mkdtemp(prefix=case.name))
            process = subprocess.Popen(
                command(case, cap, folder), stdout=(folder / "log").open("wb"), stderr=subprocess.STDOUT
            )
            running.append((case, factor, cap, process, folder))
            continue
        if not running:
            break
        time.sleep(0.2)
        for run in [run for run in running if run[3].poll() is not None]:
            running.remove(run)
            case, factor, cap, process, folder = run
            results.append({"name": case.name, "factor": factor, "cap_bytes": cap, "exit_code": process.returncode})
            log = (folder / "log").read_text(errors="replace")
            died = next((line for line in log.splitlines() if "error:" in line), "")
            print(f"{case.name:36} {factor:.2f} exit {process.returncode} {died[:150]}", flush=True)
            head = _head(folder, head)
            write_rows(output, {**head, "steps": STEPS}, results, key="runs")
    print(f"{len(waiting)} not started")


if __name__ == "__main__":
    main()
