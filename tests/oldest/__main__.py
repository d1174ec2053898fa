"""The oldest supported DeepSpeed against the newest: ``python -m tests.oldest [FOLDER]`` (about a minute).

Installs the oldest into FOLDER (default: ``.oldest``), where it is not yet, and makes the same dry runs with both. What
they allocate has not changed between the two, so that every level and every peak must be the same, to the byte.
"""

from __future__ import annotations

import os
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


def main() -> int:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else ".oldest").absolute()
    version = ".".join(map(str, OLDEST_DEEPSPEED))
    install(folder, version)
    oldest, newest = (dict(dry_runs(dict(specifications()), packages=packages)) for packages in (folder, None))
    different = 0
    for name in CASES:
        one, other = oldest[name], newest[name]
        same = memory_of(one) == memory_of(other) and version_of(one) == version
        different += not same
        print(f"{name:32} DeepSpeed {version_of(one)} and {version_of(other)}: {'the same' if same else 'DIFFERENT'}")
        if not same:
            print(f"  {one}\n  {other}")
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
    return [outcome["init"], [step["phases"] for step in outcome["steps"]], outcome["host"]]


def version_of(outcome: Outcome) -> str:
    return outcome if isinstance(outcome, str) else str(outcome["versions"]["deepspeed"])


if __name__ == "__main__":
    sys.exit(main())
