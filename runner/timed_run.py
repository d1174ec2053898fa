"""One rank of a timed run: DeepSpeed's engine, a few steps without a wait between their phases, their seconds.

``python -m runner.timed_run SPEC_JSON OUTPUT_DIR``, started once per rank by DeepSpeed's launcher, as
``runner.train`` is, and leaves the same files; the record has times and peaks instead of phases.
"""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from typing import Any

from runner.spec import RunSpec
from runner.train import Reporter, as_rank

#: Steps that are not counted: the first makes optimizer states, stage 3 first prefetches in the second.
WARMUP = 3


def main() -> int:
    return as_rank(timed)


def timed(spec: RunSpec, reporter: Reporter) -> dict[str, Any]:
    """Time ``spec.steps`` steps on this rank, after :data:`WARMUP` others, and return the rank's record."""
    reporter.stage("loading torch and DeepSpeed")
    import torch
    import torch._dynamo  # zero.Init patches torch while dynamo would be imported inside it

    from runner.device import open_device

    cap = spec.memory_cap_bytes
    device = open_device(replace(spec, memory_cap_bytes=None))
    import deepspeed

    from runner.compiling import announce_compilation
    from runner.timed_engine import TimedEngine

    announce_compilation(reporter.stage, back_to=lambda: reporter.text)
    torch.manual_seed(spec.seed)
    deepspeed.init_distributed(dist_backend=device.backend, verbose=False)
    reporter.phase = "init"
    reporter.stage("building the model and DeepSpeed's engine")
    engine = TimedEngine(
        spec.model,
        spec.ds_config,
        checkpointing=spec.activation_checkpointing,
        device=device,
        limit=None if cap is None else partial(device.limit, cap),
    )
    reporter.phase, reporter.step = "steps", 1
    reporter.stage("taking steps")
    micro_batches = engine.engine.gradient_accumulation_steps()
    device.reset_peak()
    times = engine.time(
        engine.engine.train_micro_batch_size_per_gpu(),
        spec.sequence_length,
        warmup=WARMUP * micro_batches,
        steps=spec.steps * micro_batches,
    )
    info, peak = device.info(), device.peak()
    return {
        "rank": int(os.environ.get("RANK", "0")),
        "device": {"kind": info.kind, "name": info.name, "memory_bytes": info.memory_bytes},
        "versions": {"torch": torch.__version__, "deepspeed": deepspeed.__version__, **device.versions()},
        "seconds": times.seconds * micro_batches,
        "peak_allocated_bytes": peak.allocated_bytes,
        "peak_reserved_bytes": peak.reserved_bytes,
    }


if __name__ == "__main__":
    raise SystemExit(main())
