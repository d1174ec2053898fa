"""The dry run against reality on the CPU: two real ranks over gloo, storage by storage at the end of every phase."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from dsplan.cli.verify_input import with_small_buckets
from dsplan.dsconfig.emit import emit
from dsplan.hardware import Cluster
from dsplan.model import ModelShape
from dsplan.strategies import find_plan, standard_plans
from dsplan.verify_device import CPU
from dsplan.workload import Workload

pytest.importorskip("deepspeed")

from runner.spec import RunSpec
from tests.dry_runs import dry_runs
from tests.forked_ranks import ForkedRanks

RANKS = 2
STEPS = 3
#: What the two may differ by, of the larger (issue 3); so far they have been equal to the byte.
TOLERANCE = 0.001
STRATEGIES = ("zero0", "zero1", "zero2", "zero3", "zero2-offload", "zero3-offload", "zero3-offload-param")
MODEL = ModelShape(
    num_layers=3, hidden_size=256, num_attention_heads=4, vocab_size=4000, max_position_embeddings=64, name="small"
)

#: (step, phase) -> bytes, the initialisation first.
Levels = dict[tuple[str, str], int]


def specification(strategy: str) -> RunSpec:
    """A real run of small buckets, which fill several times in a backward pass as those of a large model do."""
    workload = Workload(sequence_length=64)
    plan = with_small_buckets(find_plan(standard_plans(MODEL, workload), strategy), MODEL)
    return RunSpec(
        model=MODEL.to_config(),
        ds_config=emit(plan, MODEL, Cluster(gpus_per_node=RANKS)),
        sequence_length=64,
        device="cpu",
        gpus=RANKS,
        steps=STEPS,
    )


def levels(record: dict[str, Any]) -> Levels:
    found = {("init", "init"): record["init"]["level_bytes"]}
    for step in record["steps"]:
        for phase, measured in step["phases"].items():
            found[str(step["index"]), phase] = measured["level_bytes"]
    return found


def differing(dry: Levels, real: Levels) -> Iterator[str]:
    for (step, phase), level in dry.items():
        other = real[step, phase]
        if abs(level - other) > TOLERANCE * max(level, other):
            yield f"{phase} of step {step}: dry {level}, real {other}, {level - other:+d} bytes"


@pytest.fixture(scope="module")
def dry_levels() -> dict[str, Levels]:
    """Of every strategy and rank."""
    specs = {
        f"{strategy} {rank}": replace(specification(strategy), device="fake", rank=rank, target=asdict(CPU))
        for strategy in STRATEGIES
        for rank in range(RANKS)
    }
    found = {}
    for name, record in dry_runs(specs):
        assert isinstance(record, dict), f"{name}: {record}"
        found[name] = levels(record)
    return found


@pytest.mark.engine
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_phase_ends_with_the_bytes_of_a_real_run(
    strategy: str, dry_levels: dict[str, Levels], forked_ranks: ForkedRanks, tmp_path: Path
) -> None:
    spec = specification(strategy)
    dry = [dry_levels[f"{strategy} {rank}"] for rank in range(RANKS)]
    real = [levels(record) for record in forked_ranks.run(spec, tmp_path / "real")]
    assert [len(found) for found in dry] == [1 + 3 * STEPS] * RANKS
    if any(list(differing(*pair)) for pair in zip(dry, real, strict=True)):
        # A thread of gloo's may hold a reduced bucket for a moment after the phase has ended: that only ever adds,
        # and not to the same phase twice.
        again = [levels(record) for record in forked_ranks.run(spec, tmp_path / "again")]
        real = [
            {key: min(level, other[key]) for key, level in one.items()} for one, other in zip(real, again, strict=True)
        ]
    wrong = [
        f"rank {rank}, {text}" for rank, pair in enumerate(zip(dry, real, strict=True)) for text in differing(*pair)
    ]
    assert not wrong, "\n".join([f"{strategy}, of which the dry run holds other bytes than two real ranks:", *wrong])
