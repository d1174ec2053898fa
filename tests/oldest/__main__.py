"""The oldest supported DeepSpeed against the newest: ``python -m tests.oldest [FOLDER]`` (about a minute).

Installs the oldest into FOLDER (default: ``.oldest``), where it is not yet, and makes the same dry runs with both.
Every level and every peak must be the same, to the byte, but for what is known to have changed (:data:`CHANGED`).
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dsplan.catalogue import accelerator
from runner.device.fake.versions import OLDEST_DEEPSPEED
from runner.spec import RunSpec
from tests.dry_runs import Outcome, dry_runs

CPU = {"device": "cpu", "pin_memory": True}
MODEL = {"model_type": "mingpt", "n_layer": 2, "n_head": 4, "n_embd": 256, "vocab_size": 5000, "block_size": 256}
BF16, FP16, FP32 = {"bf16": {"enabled": True}}, {"fp16": {"enabled": True}}, {}
#: Name -> (precision, zero_optimization).
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "stage 0, fp32": (FP32, {"stage": 0}),
    "stage 1, bf16": (BF16, {"stage": 1}),
    "stage 2, fp16": (FP16, {"stage": 2, "overlap_comm": True}),
    "stage 2, bf16, offload": (BF16, {"stage": 2, "offload_optimizer": CPU}),
    "stage 3, bf16": (BF16, {"stage": 3}),
    "stage 3, fp16, offload of both": (FP16, {"stage": 3, "offload_optimizer": CPU, "offload_param": CPU}),
}

#: Where the older takes more in the optimizer's step: it computed the norm of each gradient from a copy in double, the
#: newer from one in the norm's type (deepspeed/runtime/zero/stage_1_and_2.py, get_grad_norm_direct).
CHANGED = ("stage 1, bf16", "stage 2, fp16")
_STEP_PEAK = re.compile(r"/steps/\d+/step/peak_bytes")


def main() -> int:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else ".oldest").absolute()
    version = ".".join(map(str, OLDEST_DEEPSPEED))
    install(folder, version)
    oldest, newest = (dict(dry_runs(dict(specifications()), packages=packages)) for packages in (folder, None))
    different = 0
    for name in CASES:
        one, other = oldest[name], newest[name]
        found = list(differences(memory_of(one), memory_of(other)))
        known = [where for where, old, new in found if name in CHANGED and _STEP_PEAK.fullmatch(where) and old > new]
        fine = len(known) == len(found) and version_of(one) == version and (bool(known) == (name in CHANGED))
        different += not fine
        verdict = "DIFFERENT" if not fine else "the same" if not known else "the same but for the norm"
        print(f"{name:32} DeepSpeed {version_of(one)} and {version_of(other)}: {verdict}")
        for where, old, new in [] if fine else found:
            print(f"  {where}: {str(old)[:200]} and {str(new)[:200]}")
    print(f"{len(CASES)} dry runs with either, {different} different")
    return 1 if different else 0


def install(folder: Path, version: str) -> None:
    """DeepSpeed ``version`` alone, in ``folder``; without its operators, of which a dry run needs none."""
    if (folder / f"deepspeed-{version}.dist-info").exists():
        return
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    command += ["--target", str(folder), f"deepspeed=={version}"]
    subprocess.run(command, check=True, env={**os.environ, "DS_BUILD_OPS": "0"})


def specifications() -> Iterator[tuple[str, RunSpec]]:
    for name, (precision, zero) in CASES.items():
        config = {
            "train_micro_batch_size_per_gpu": 2,
            "gradient_clipping": 1.0,  # the default since 0.19.3
            "optimizer": {"type": "AdamW", "params": {"lr": 1e-4}},
            "zero_optimization": zero,
            **precision,
        }
        yield (
            name,
            RunSpec(
                model=MODEL,
                ds_config=config,
                sequence_length=256,
                device="fake",
                gpus=4,
                rank=0,
                steps=3,
                target=asdict(accelerator("h200")),
            ),
        )


def memory_of(outcome: Outcome) -> Any:
    """What was measured, in bytes."""
    if isinstance(outcome, str):
        return outcome
    return {
        "init": outcome["init"],
        "steps": [step["phases"] for step in outcome["steps"]],
        "host": outcome["host"],
    }


def differences(one: Any, other: Any, where: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Where the two differ, and what each says: numbers, or the errors."""
    if isinstance(one, (dict, list)) and type(one) is type(other) and len(one) == len(other):
        for key in one if isinstance(one, dict) else range(len(one)):
            yield from differences(one[key], other[key], f"{where}/{key}")
    elif one != other:
        yield where, one, other


def version_of(outcome: Outcome) -> str:
    return outcome if isinstance(outcome, str) else str(outcome["versions"]["deepspeed"])


if __name__ == "__main__":
    sys.exit(main())
