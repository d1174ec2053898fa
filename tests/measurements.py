"""Measurements and predictions made by hand: the comparison and the report are tested without an engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dsplan.ledger import PhaseMemory, StepMemory
from dsplan.measurement import Measurement, measurement_from_ranks
from dsplan.model import ModelShape
from dsplan.prediction import Prediction
from dsplan.units import MIB
from dsplan.workload import Workload

MODEL = ModelShape(name="tiny", num_layers=2, hidden_size=32, num_attention_heads=4, vocab_size=64)
#: Levels and peaks of a step's phases, in MiB.
FIRST = ((20, 21), (12, 25), (16, 22))
STEADY = ((24, 25), (16, 29), (16, 26))


def phase(level: int, peak: int, *, before: int = 10, cuda: bool = False) -> dict[str, Any]:
    """A phase as the runner writes it, sizes in MiB."""
    return {
        "level_before_bytes": before * MIB,
        "level_bytes": level * MIB,
        "peak_bytes": peak * MIB,
        "reserved_bytes": level * MIB if cuda else None,
        "peak_reserved_bytes": 2 * peak * MIB if cuda else None,
        "device_bytes": 3 * level * MIB if cuda else None,
        "rss_bytes": 400 * MIB,
    }


def step(
    index: int, sizes: Sequence[tuple[int, int]], *, skipped: bool = False, loss: float = 4.0, cuda: bool = False
) -> dict[str, Any]:
    names = ("forward", "backward", "step")
    return {
        "index": index,
        "phases": {name: phase(*size, cuda=cuda) for name, size in zip(names, sizes, strict=True)},
        "loss": loss,
        "skipped": skipped,
        "seconds": 0.25,
    }


def rank_record(rank: int = 0, steps: list[dict[str, Any]] | None = None, *, cuda: bool = False) -> dict[str, Any]:
    """What ``runner.train`` writes for one rank: by default the first step and three steady ones."""
    if steps is None:
        steps = [step(index, STEADY if index else FIRST, cuda=cuda) for index in range(4)]
    return {
        "rank": rank,
        "world_size": 2,
        "created": "2026-01-02T03:04:05+00:00",
        "device": {"kind": "cuda" if cuda else "cpu", "name": "Test device", "memory_bytes": 1024 * MIB},
        "versions": {"torch": "2.13.0", "deepspeed": "0.19.8"},
        "optimizer": "FusedAdam",
        "num_parameters": MODEL.num_parameters,
        "init": phase(10, 15, before=0, cuda=cuda),
        "init_seconds": 1.5,
        "steps": steps,
        "host": {
            "base_rss_bytes": 300 * MIB,
            "rss_bytes": 380 * MIB,
            "peak_rss_bytes": 400 * MIB,
            "pinned_bytes": 64 * MIB if cuda else 0,
        },
    }


#: (cause, where, MiB, storages) at the peak of a steady step's backward pass.
TERMS = (
    ("parameters", "mingpt/model.py:10", 8, 20),
    ("gradients", "deepspeed/runtime/zero/stage3.py:200", 6, 2),
    ("gradients", "mingpt/model.py:99", 4, 3),
    ("activations", "mingpt/model.py:42", 11, 12),
)


def dry_record(rank: int = 0, world_size: int = 4, steps: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    """What the runner returns of a dry run for an H200: the record of one rank, with the sizes of a real one."""
    record = rank_record(rank, steps, cuda=True)
    for one in record["steps"]:
        one["loss"] = None
    # At once it is less than the peaks of pageable and pinned memory, which dry_run has, together.
    record["host"]["peak_rss_bytes"] = 390 * MIB
    terms = [{"cause": cause, "where": where, "bytes": size * MIB, "count": n} for cause, where, size, n in TERMS]
    return {
        **record,
        "world_size": world_size,
        "device": {"kind": "fake", "name": "NVIDIA H200 141GB", "memory_bytes": 1024 * MIB},
        "dry_run": {
            "target": "h200",
            "num_events": 12345,
            "seconds": 3.25,
            "early_release": False,
            "allocator": {"settings": "", "num_alloc_retries": 0, "num_segments": 7},
            "answers": [
                {"question": "item", "where": "deepspeed/runtime/utils.py:233", "answer": "1.0", "count": 12},
                {"question": "bool", "where": "deepspeed/runtime/utils.py:99", "answer": "False", "count": 1},
            ],
            "host": {
                "pageable_bytes": 40 * MIB,
                "pinned_bytes": 64 * MIB,
                "process_bytes": 1700 * MIB,
                "locked_bytes": 0,
            },
            "peaks": [
                {"step": "init", "phase": "init", "terms": [], **peak_sizes(MIB * 900)},
                {"step": "0", "phase": "backward", "terms": terms[:1], **peak_sizes(MIB * 25)},
                {"step": "1", "phase": "backward", "terms": terms, **peak_sizes(MIB * 29)},
            ],
        },
    }


def peak_sizes(peak_bytes: int) -> dict[str, int]:
    """The sizes of a dry run's peak, all of it in tensors."""
    return {"bytes": peak_bytes, "tensor_peak_bytes": peak_bytes, "tensor_level_bytes": peak_bytes // 2}


def measurement(*records: dict[str, Any]) -> Measurement:
    """The measurement of these ranks; of one default rank without any."""
    return measurement_from_ranks(
        records or (rank_record(),),
        strategy="zero2",
        model_name=MODEL.name,
        model=MODEL.to_config(),
        ds_config={"train_batch_size": 2},
        workload=Workload(sequence_length=64),
        data="synthetic",
    )


def prediction(*, second: bool = False, pinned: int = 0, host: int = 100) -> Prediction:
    """What :func:`rank_record` measures; ``second`` puts a second step between first and steady."""
    names = ("forward", "backward", "step")

    def memory(name: str, sizes: Sequence[tuple[int, int]]) -> StepMemory:
        phases = {
            phase: PhaseMemory(level_bytes=level * MIB, peak_bytes=peak * MIB)
            for phase, (level, peak) in zip(names, sizes, strict=True)
        }
        return StepMemory(name=name, phases=phases)

    kinds = [memory("first step", FIRST), memory("steady state", STEADY)]
    if second:
        kinds.insert(1, memory("step 2", STEADY))
    return Prediction(
        init=StepMemory(name="init", phases={"init": PhaseMemory(level_bytes=10 * MIB, peak_bytes=15 * MIB)}),
        steps=tuple(kinds),
        pinned_bytes=pinned * MIB,
        host_bytes=host * MIB,
    )
