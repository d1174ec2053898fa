"""Every value has a reason, and its bytes are those of the memory model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from dsplan import buffers, states
from dsplan.catalogue import accelerator
from dsplan.dsconfig import reason_rules
from dsplan.dsconfig.emit import emit
from dsplan.dsconfig.measured import Row
from dsplan.dsconfig.reasons import Reason, leaves, reasons
from dsplan.estimate import PlanEstimate, estimate
from dsplan.hardware import Cluster
from dsplan.kernels import kernels_of
from dsplan.plan import Plan
from dsplan.report.console import stdout_console
from dsplan.report.reasons import print_reasons, reasons_document, reasons_of
from dsplan.zero import OffloadOptimizer, OffloadParam, ZeroConfig
from tests.dsconfig.strategies import CLUSTER, MODEL, every_strategy

#: The cluster of the other tests, with a device: 2 nodes of 4.
MACHINES = replace(CLUSTER, accelerator=accelerator("a100-80gb"))
RANKS, GPUS = 8, 4

# MODEL by hand: 4 blocks of width 1024, vocabulary 50257, 1024 positions, minGPT with an untied head.
H, VOCABULARY, POSITIONS = 1024, 50257, 1024
CUDA = kernels_of(accelerator("h200"))
BLOCK = (3 * H * H + 3 * H) + (H * H + H) + (4 * H * H + 4 * H) + (4 * H * H + H) + 4 * H
PSI = VOCABULARY * H + POSITIONS * H + 4 * BLOCK + 2 * H + VOCABULARY * H
#: One rank's part of the flat buffer, which is padded to a multiple of 2N.
PART = -(-PSI // (2 * RANKS)) * 2 * RANKS // RANKS


def row_of(plan: Plan, *, explain: bool = True) -> PlanEstimate:
    return estimate(MODEL, (plan,), MACHINES, explain=explain, ladder=False).plans[0]


def strategy(name: str) -> Plan:
    """The plan of that name, such as zero2-bf16-adamw-none."""
    return next(plan for plan in every_strategy() if plan.name == name)


def by_key(plan: Plan) -> dict[str, Reason]:
    return {reason.key: reason for reason in reasons_of(plan, MODEL, MACHINES, emit(plan, MODEL, MACHINES))}


def power_of_two(size: int) -> int:
    power = 1
    while power < size:
        power *= 2
    return power


def test_the_hand_made_numbers_are_the_models() -> None:
    assert MODEL.num_parameters == PSI


def flat(section: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in section.items():
        found += flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else [(prefix + key, value)]
    return found


def test_every_value_of_every_strategy_has_a_reason_in_its_place() -> None:
    nothing = SimpleNamespace(
        device=SimpleNamespace(peak_bytes=0, peak_step="", peak_phase="", peak_moment=""),
        host=SimpleNamespace(pinned_bytes=0, bytes_per_node=0),
        terms=(),
    )
    plans = every_strategy()
    assert len(plans) > 200
    for plan in plans:
        document = emit(plan, MODEL, MACHINES)
        found = reasons(plan, MODEL, MACHINES, document, lambda _: cast(Row, nothing))
        assert [(reason.key, reason.value) for reason in found] == flat(document)
        for reason in found:
            assert reason.why, reason.key
            assert reason.source, reason.key
            assert "\n" not in reason.why


def test_no_value_of_a_strategy_is_left_to_the_last_resort() -> None:
    keys = {key for plan in every_strategy() for key, _ in leaves(emit(plan, MODEL, MACHINES))}
    known = {*reason_rules._RULES}
    assert {key for key in keys if key not in known and not key.startswith(tuple(reason_rules._SECTIONS))} == set()
    sizes = {key for key in keys if key.startswith("zero_optimization.") and not key.endswith("nvme_path")}
    row = by_key(strategy("zero3-nvme-bf16-adamw-none"))
    without = {key for key in sizes & set(row) if row[key].device_bytes is None}
    assert without == {"zero_optimization.offload_param.buffer_size"}


def test_the_names_of_terms_are_those_of_the_memory_model() -> None:
    assert buffers.REDUCE_BUCKET.name == reason_rules.REDUCE_BUCKET
    assert (states.OPTIMIZER_STATES.name, states.HOST_STATES.name) == reason_rules.STATES
    assert states.SWAP_OPTIMIZER.name == reason_rules.SWAP_OPTIMIZER
    assert states.SWAP_PARAMETERS.name == reason_rules.SWAP_PARAMETERS
    assert states.HOST_PARAMETERS.name == reason_rules.HOST_PARAMETERS


# By hand.


@pytest.mark.parametrize(("overlap", "buckets"), [(None, 1), (True, 2)])
def test_a_reduce_bucket_costs_its_elements(overlap: bool | None, buckets: int) -> None:
    """With a short sequence the peak is in the reduction after backward, where buckets live."""
    plan = strategy("zero1-bf16-sgd-none")
    zero = replace(plan.zero, overlap_comm=overlap)
    workload = replace(plan.workload, micro_batch_size=1, sequence_length=8, gradient_accumulation_steps=1)
    plan = replace(plan, zero=zero, workload=workload)
    # Nearly the same at both moments.
    assert row_of(plan).device.peak_moment in ("end of backward, gradient reduction", "backward of the embedding")
    # 12 h² is less than 2^24 at h = 1024; the largest matrix is 4 h².
    reason = by_key(plan)["zero_optimization.reduce_bucket_size"]
    assert reason.value == 2**24
    assert reason.device_bytes == buckets * 2 * 2**24
    size = "16,777,216 x 2 bytes" + (" x 2 for overlap_comm" if buckets == 2 else "")
    assert f"{size} = {buckets * 32}.0 MiB, at the peak" in reason.why
    assert reason.host_bytes == 0


def test_a_bucket_that_is_not_at_the_peak_costs_nothing_there() -> None:
    """At stage 2 a long sequence puts the peak before the first gradient."""
    plan = strategy("zero2-bf16-adamw-none")
    assert row_of(plan).device.peak_moment == "backward of the loss and the head"
    reason = by_key(plan)["zero_optimization.reduce_bucket_size"]
    assert reason.device_bytes == 0
    assert "32.0 MiB, but not at the peak, in the backward (backward of the loss and the head)" in reason.why


def test_the_bucket_of_stage_3_is_always_there() -> None:
    for precision, width in (("fp32", 4), ("bf16", 2)):
        reason = by_key(strategy(f"zero3-{precision}-adamw-none"))["zero_optimization.reduce_bucket_size"]
        assert reason.device_bytes == width * 2**24
        assert "at the peak" in reason.why


def test_adams_states_are_eight_bytes_of_each_rank_parameter() -> None:
    """Two states of 4 bytes, which the peak in the step has; each tensor counts its block."""
    plan = strategy("zero1-fp32-adamw-none")
    plan = replace(plan, workload=replace(plan.workload, micro_batch_size=1, sequence_length=8))
    reason = by_key(plan)["optimizer.type"]
    assert reason.device_bytes == 2 * CUDA.rounded(4 * PART)
    assert reason.host_bytes == 0


def test_offloaded_states_are_counted_though_the_peak_comes_before_them() -> None:
    plan = strategy("zero2-offload-bf16-adamw-none")
    assert row_of(plan).device.peak_step == "first step"
    reason = by_key(plan)["optimizer.type"]
    assert (reason.device_bytes, reason.host_bytes) == (0, GPUS * 2 * 4 * PART)


def test_pinned_bytes_are_powers_of_two() -> None:
    """Stage 2 pins masters and gradients (4 bytes), the 16-bit copy, and the largest gradient."""
    plan = strategy("zero2-offload-bf16-adamw-none")
    plan = replace(plan, workload=replace(plan.workload, gradient_accumulation_steps=1))
    blocks = (4 * PART, 2 * PART, 2 * VOCABULARY * H, 4 * PART)
    reason = by_key(plan)["zero_optimization.offload_optimizer.pin_memory"]
    assert reason.host_bytes == GPUS * sum(power_of_two(size) for size in blocks)
    assert reason.device_bytes == 0
    off = replace(plan, zero=replace(plan.zero, offload_optimizer=OffloadOptimizer(device="cpu", pin_memory=False)))
    assert by_key(off)["zero_optimization.offload_optimizer.pin_memory"].host_bytes == 0


def test_swap_buffers_are_their_count_times_their_size() -> None:
    plan = strategy("zero3-nvme-bf16-adamw-none")
    found = by_key(plan)
    size = plan.zero.offload_param.buffer_size
    assert size == VOCABULARY * H  # tuned for any number of ranks
    count = found["zero_optimization.offload_param.buffer_count"]
    assert count.host_bytes == GPUS * 2 * plan.zero.offload_param.buffer_count * (-(-size // 512) * 512)


# As differences of estimates.


@pytest.mark.parametrize(
    ("name", "key", "change"),
    [
        ("zero3-offload", "zero_optimization.offload_optimizer.device", {"offload_optimizer": OffloadOptimizer()}),
        ("zero3-offload-param", "zero_optimization.offload_param.device", {"offload_param": OffloadParam()}),
        ("zero3", "zero_optimization.stage", {"stage": 2}),
        ("zero2", "zero_optimization.stage", {"stage": 1}),
        ("zero3", "zero_optimization.stage3_prefetch_bucket_size", {"stage3_prefetch_bucket_size": 0}),
        ("zero3", "zero_optimization.stage3_max_live_parameters", {"stage3_max_live_parameters": 0}),
        ("zero3", "zero_optimization.sub_group_size", {"sub_group_size": 10**9}),
    ],
)
def test_a_difference_is_that_of_two_estimates(name: str, key: str, change: dict[str, Any]) -> None:
    plan = strategy(f"{name}-bf16-adamw-none")
    mine, other = row_of(plan), row_of(replace(plan, zero=replace(plan.zero, **change)))
    reason = by_key(plan)[key]
    assert reason.device_bytes == mine.device.peak_bytes - other.device.peak_bytes
    assert reason.host_bytes == mine.host.bytes_per_node - other.host.bytes_per_node
    if "offload" in key or key.endswith("stage"):
        assert reason.device_bytes < 0
    if "offload" in key:
        assert reason.host_bytes > 0


def test_the_micro_batch_costs_its_activations() -> None:
    """Where both peaks are at the same moment, what grows is what the terms of the peak say."""
    plan = strategy("zero3-bf16-adamw-none")
    plan = replace(plan, workload=replace(plan.workload, micro_batch_size=8))
    twice = replace(plan, workload=replace(plan.workload, micro_batch_size=16))
    one, two = row_of(plan), row_of(twice)
    assert one.device.peak_moment == two.device.peak_moment
    names = {term.name for term in (*one.terms, *two.terms) if term.place == "device"}
    sizes = [{term.name: term.size_bytes for term in row.terms} for row in (one, two)]
    grown = sum(sizes[1].get(name, 0) - sizes[0].get(name, 0) for name in names)
    assert by_key(plan)["train_micro_batch_size_per_gpu"].device_bytes == grown > 0
    logits = "logits and log-probabilities"
    assert sizes[0][logits] % CUDA.rounded(2 * 8 * 1024 * VOCABULARY) == 0  # e·b·s·V each, by hand


def test_a_value_without_memory_says_so() -> None:
    found = by_key(strategy("zero3-fp16-adamw-none"))
    for key in ("optimizer.params.betas", "scheduler.type", "steps_per_print", "fp16.loss_scale"):
        assert (found[key].device_bytes, found[key].host_bytes) == (None, None)
    assert found["fp16.enabled"].device_bytes is not None


def test_auto_is_explained_by_what_is_planned() -> None:
    plan = strategy("zero3-bf16-adamw-none")
    document = emit(plan, MODEL, MACHINES)
    document["zero_optimization"]["reduce_bucket_size"] = "auto"
    found = {reason.key: reason for reason in reasons_of(plan, MODEL, MACHINES, document)}
    reason = found["zero_optimization.reduce_bucket_size"]
    assert (reason.value, reason.device_bytes) == ("auto", 2 * 2**24)
    assert reason.why.startswith("the framework fills it in; ")


def test_other_names_have_the_same_reasons() -> None:
    plan = replace(strategy("zero3-bf16-adamw-none"), zero=ZeroConfig(stage=3))
    document = {"zero_optimization": {"stage": 3, "prefetch_bucket_size": 50_000_000}, "wandb": {"enabled": True}}
    found = {reason.key: reason for reason in reasons_of(plan, MODEL, MACHINES, document)}
    other = row_of(replace(plan, zero=replace(plan.zero, stage3_prefetch_bucket_size=0)))
    expected = row_of(plan).device.peak_bytes - other.device.peak_bytes
    assert found["zero_optimization.prefetch_bucket_size"].device_bytes == expected
    assert found["wandb.enabled"].device_bytes is None


# Reports.


def test_the_table_and_the_document(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    plan = strategy("zero3-offload-bf16-adamw-none")
    found = reasons_of(plan, MODEL, MACHINES, emit(plan, MODEL, MACHINES))
    rows = reasons_document(found)
    assert json.loads(json.dumps(rows)) == rows
    assert set(rows[0]) == {"key", "value", "why", "device_bytes", "host_bytes", "source"}
    print_reasons(stdout_console(), found)
    out = capsys.readouterr().out
    assert all(len(line) <= 80 for line in out.splitlines())
    for words in ("train_batch_size = 48\n", "GPU peak +32.0 MiB, CPU 0 B", "  which changes no memory"):
        assert words.strip() in out
    monkeypatch.setenv("COLUMNS", "200")
    print_reasons(stdout_console(), found)
    out = capsys.readouterr().out
    for words in ("GPU peak", "CPU a node", "+32.0 MiB", "DeepSpeed runtime/zero/stage3.py"):
        assert words in out


def test_a_model_without_a_device_has_reasons_too() -> None:
    cluster = Cluster(gpus_per_node=2)
    plan = strategy("zero2-bf16-adamw-none")
    assert reasons_of(plan, MODEL, cluster, emit(plan, MODEL, cluster))
