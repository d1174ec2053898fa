"""Improving: what the user decided stays, what was sized for another model is put right, and twice is once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsplan import estimate as estimator
from dsplan.catalogue import accelerator, preset
from dsplan.dsconfig import improve as improving
from dsplan.dsconfig.emit import emit
from dsplan.dsconfig.improve import Change, Improvement
from dsplan.dsconfig.read import DsConfig, read_document
from dsplan.dsconfig.resolve import Script
from dsplan.dsconfig.stages import STAGES, stages_of
from dsplan.errors import InputError
from dsplan.hardware import Cluster
from dsplan.kernels import Kernels
from dsplan.model import ModelShape
from dsplan.plan import Plan
from dsplan.report.console import stdout_console
from dsplan.report.improvement import improvement_document, improvement_of, print_improvement
from dsplan.schemas import schema
from dsplan.units import GIB, MIB
from dsplan.zero import ZeroConfig
from tests.dsconfig.strategies import CLUSTER, MODEL, every_strategy, plans

#: 355M parameters: Adam's states, masters and 16-bit parameters and gradients are 5.3 GiB on one rank.
MEDIUM = preset("gpt2-medium")
H200 = accelerator("h200")
SEQUENCE = 128
BASE: dict[str, Any] = {
    "train_micro_batch_size_per_gpu": 1,
    "gradient_accumulation_steps": 1,
    "bf16": {"enabled": True},
    "optimizer": {"type": "AdamW", "params": {"lr": 1e-4, "betas": [0.9, 0.9]}},
    "scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 7}},
    "wandb": {"enabled": True, "project": "mine"},
    "csv_monitor": {"enabled": True, "output_path": "logs"},
    "steps_per_print": 123,
    "gradient_clipping": 0.7,
}


def cluster(memory: int | None, gpus: int = 4) -> Cluster:
    device = None if memory is None else replace(H200, memory_bytes=memory)
    return Cluster(accelerator=device, gpus_per_node=gpus)


class Case:
    """A document in a file, for a model on machines."""

    def __init__(self, folder: Path, machines: Cluster, model: ModelShape = MEDIUM, **reader: Any) -> None:
        self.path = folder / "mine.json"
        self.machines, self.model = machines, model
        self.reader = {"sequence_length": SEQUENCE, **reader}

    def read(self, document: Mapping[str, Any]) -> DsConfig:
        return read_document(document, path=self.path, world_size=self.machines.world_size, **self.reader)

    def improve(self, document: Mapping[str, Any], **options: Any) -> Improvement:
        self.path.write_text(json.dumps(document), encoding="utf-8")
        return improvement_of(self.path, self.model, self.machines, self.read, **options)


def zero(**section: Any) -> dict[str, Any]:
    return {**BASE, "zero_optimization": section}


def changed(improvement: Improvement) -> dict[str, Change]:
    keys = [change.key for change in improvement.changes]
    assert len(keys) == len(set(keys))  # nothing is changed twice
    return {change.key: change for change in improvement.changes}


def require_sound(case: Case, document: Mapping[str, Any], found: Improvement) -> None:
    """The properties that every improvement has."""
    # It is read back as what was planned, and improving it changes nothing more.
    assert case.read(found.document).plan == found.plan
    again = case.improve(found.document)
    assert (again.changes, again.document) == ((), found.document)
    before, after = found.before, found.after
    if before.verdict == improving.FITS:
        assert after.verdict == improving.FITS
        if found.strategy is None:
            assert after.device.peak_bytes <= before.device.peak_bytes
            assert after.host.bytes_per_node <= before.host.bytes_per_node
    # The changes tell the whole difference between the documents.
    undone = json.loads(json.dumps(found.document))
    assert (undone == document) == (not found.changes)


def test_a_configuration_that_suits_is_left_alone(tmp_path: Path) -> None:
    for stage in (0, 1, 2, 3):
        case = Case(tmp_path, cluster(None))
        plan = Plan(name="x", zero=improved_zero(stage), workload=case.read({**BASE, **zero(stage=stage)}).workload)
        document = emit(plan, MEDIUM, case.machines)
        found = case.improve(document)
        assert found.changes == ()
        assert found.document == document
        assert found.strategy is None
        require_sound(case, document, found)


def improved_zero(stage: int) -> ZeroConfig:
    from dsplan.dsconfig.buckets import tuned

    return tuned(ZeroConfig(stage=stage), MEDIUM)


# Buckets and thresholds.


def test_a_bucket_of_another_model_gets_this_ones_size(tmp_path: Path) -> None:
    """DeepSpeed's default of 5e8 elements is more than the model has; the second bucket is overlap_comm's."""
    case = Case(tmp_path, cluster(None))
    document = zero(stage=3, reduce_bucket_size=5e8, sub_group_size=1e8)
    found = case.improve(document)
    change = changed(found)["zero_optimization.reduce_bucket_size"]
    assert (change.before, change.after) == (5e8, 2**24)
    assert change.why == f"larger than the model's {MEDIUM.num_parameters:,} parameters"
    assert change.device_before is not None
    assert change.device_after is not None
    # Stage 3 always holds one bucket of 2 bytes an element, in a segment of its own.
    assert change.device_before - change.device_after == Kernels().rounded(2 * 500_000_000) - 2 * 2**24
    assert found.document["zero_optimization"]["reduce_bucket_size"] == 2**24
    require_sound(case, document, found)


def test_a_default_that_does_not_suit_is_written_down(tmp_path: Path) -> None:
    case = Case(tmp_path, cluster(None))
    found = case.improve(zero(stage=3))
    assert changed(found)["zero_optimization.reduce_bucket_size"].before is None
    assert found.plan.zero.reduce_bucket_size == 2**24


def test_a_bucket_far_too_small_grows_only_where_that_costs_nothing(tmp_path: Path) -> None:
    """At stage 3 the bucket is there at every peak; at stage 1 here it is not."""
    case = Case(tmp_path, cluster(None))
    kept = case.improve(zero(stage=3, reduce_bucket_size=1000, sub_group_size=1e8))
    assert kept.plan.zero.reduce_bucket_size == 1000
    assert "zero_optimization.reduce_bucket_size" not in changed(kept)
    grown = case.improve(zero(stage=2, allgather_bucket_size=1000, reduce_bucket_size=2**24))
    change = changed(grown)["zero_optimization.allgather_bucket_size"]
    assert (change.after, change.device_before) == (MEDIUM.num_parameters, change.device_after)


def test_a_threshold_that_gathers_everything(tmp_path: Path) -> None:
    case = Case(tmp_path, cluster(None))
    document = zero(stage=3, param_persistence_threshold=10**9, prefetch_bucket_size=10**9)
    found = case.improve(document)
    section = found.document["zero_optimization"]
    assert section["param_persistence_threshold"] == 10 * 1024  # under the name that the file uses
    assert "stage3_param_persistence_threshold" not in section
    require_sound(case, document, found)


def test_a_swap_buffer_that_deepspeed_would_stop_at(tmp_path: Path) -> None:
    """The largest partition of a quarter of the embedding, 50257 x 1024 / 4 elements."""
    case = Case(tmp_path, cluster(None))
    section = {"device": "nvme", "nvme_path": "/mine", "pin_memory": True}
    document = zero(stage=3, offload_param={**section, "buffer_size": 10**6}, offload_optimizer=section)
    found = case.improve(document)
    change = changed(found)["zero_optimization.offload_param.buffer_size"]
    assert (change.before, change.after) == (10**6, 50257 * 1024)
    assert change.why == "DeepSpeed stops: the largest partition has 12,865,792 elements"
    assert found.document["zero_optimization"]["offload_param"]["nvme_path"] == "/mine"
    require_sound(case, document, found)


# The strategy.


def test_a_faster_strategy_that_fits_is_taken(tmp_path: Path) -> None:
    case = Case(tmp_path, cluster(80 * GIB))
    document = zero(stage=3, offload_optimizer={"device": "cpu"}, overlap_comm=True, stage3_max_live_parameters=10**8)
    found = case.improve(document)
    assert found.strategy == "zero0"
    assert found.after.verdict == "fits"
    changes = changed(found)
    first = next(iter(changes.values()))
    assert (first.key, first.why) == ("zero_optimization.stage", "zero0 is faster and fits")
    assert first.device_after is not None
    assert changes["zero_optimization.offload_optimizer"].after is None
    assert changes["zero_optimization.stage3_max_live_parameters"].why == "stage 0 does not read it"
    assert found.document["zero_optimization"] == {"stage": 0}
    require_sound(case, document, found)


def test_what_does_not_fit_becomes_the_fastest_that_does(tmp_path: Path) -> None:
    """Stage 0 needs 16 bytes a parameter and more, 5.3 GiB; the device has 4 GiB."""
    case = Case(tmp_path, cluster(4 * GIB))
    document = zero(stage=0)
    found = case.improve(document)
    assert found.before.verdict == "does not fit"
    assert found.strategy is not None
    names = [plan.name for plan in estimate_all(case)]
    by_name = {row.plan.name: row for row in estimator.estimate(MEDIUM, estimate_all(case), case.machines).plans}
    assert by_name[found.strategy].verdict == found.after.verdict == "fits"
    for name in names[: names.index(found.strategy)]:
        assert by_name[name].verdict != "fits"
    assert "it does not fit: the device is short by" in found.changes[0].why
    require_sound(case, document, found)


def estimate_all(case: Case) -> list[Plan]:
    from dsplan.strategies import standard_plans

    workload = case.read(zero(stage=0)).workload
    return [plan for plan in standard_plans(MEDIUM, workload) if not plan.name.endswith("-ckpt")]


def test_smaller_buckets_can_be_enough(tmp_path: Path) -> None:
    """Stage 3 with a bucket of 2 GB does not fit; with one that suits it does, and nothing faster."""
    document = zero(stage=3, reduce_bucket_size=10**9, sub_group_size=10**8)
    roomy = Case(tmp_path, cluster(80 * GIB, gpus=2))
    plan = roomy.read(zero(**{**document["zero_optimization"], "reduce_bucket_size": 2**24})).plan
    row = estimator.estimate(MEDIUM, [plan], roomy.machines, ladder=False).plans[0]
    reserved = 80 * GIB - (roomy.machines.accelerator.usable_bytes or 0) if roomy.machines.accelerator else 0
    case = Case(tmp_path, cluster(row.device.device_bound_bytes + reserved + MIB, gpus=2))
    found = case.improve(document)
    assert found.before.verdict == "does not fit"
    assert (found.strategy, found.after.verdict) == (None, "fits")
    assert changed(found)["zero_optimization.reduce_bucket_size"].after == 2**24
    require_sound(case, document, found)


def test_nothing_fits(tmp_path: Path) -> None:
    case = Case(tmp_path, cluster(GIB), sequence_length=1024)
    document = {**zero(stage=2), "train_micro_batch_size_per_gpu": 64}
    found = case.improve(document)
    assert (found.strategy, found.after.verdict) == (None, "does not fit")
    assert any(note.startswith("nothing fits with these batch sizes") for note in found.notes)
    require_sound(case, document, found)


def test_checkpointing_is_named_where_it_would_help(tmp_path: Path) -> None:
    case = Case(tmp_path, cluster(6 * GIB), sequence_length=1024)
    found = case.improve({**zero(stage=2), "train_micro_batch_size_per_gpu": 6})
    assert found.strategy is None
    assert any(note.endswith("would fit: the script has to checkpoint its blocks") for note in found.notes)


def test_without_a_device_the_strategy_stays(tmp_path: Path) -> None:
    found = Case(tmp_path, cluster(None)).improve(zero(stage=3, offload_optimizer={"device": "cpu"}))
    assert (found.strategy, found.plan.zero.stage) == (None, 3)
    assert found.plan.zero.offloads_optimizer
    assert "no device was named" in found.notes[0]


def test_an_optimizer_that_zero_must_be_told_of(tmp_path: Path) -> None:
    case = Case(tmp_path, cluster(5 * GIB))
    document = {**zero(stage=0), "optimizer": {"type": "SGD"}}
    found = case.improve(document)
    assert found.plan.zero.stage > 0
    assert found.document["zero_allow_untested_optimizer"] is True
    require_sound(case, document, found)


def test_a_strategy_on_nvme_gets_its_path_and_requests(tmp_path: Path) -> None:
    model = replace(MEDIUM, num_layers=96, name="deep")
    machines = replace(cluster(13 * GIB // 2, gpus=1), host_memory_bytes=20 * GIB)
    case = Case(tmp_path, machines, model)
    document = zero(stage=2)
    found = case.improve(document, nvme_path="/fast")
    assert found.strategy == "zero3-nvme"
    section = found.document["zero_optimization"]
    assert section["offload_optimizer"]["nvme_path"] == section["offload_param"]["nvme_path"] == "/fast"
    assert found.document["aio"]["queue_depth"] == 8
    assert list(found.document)[: len(BASE)] == list(BASE)


# Names and keys.


@pytest.mark.parametrize(
    ("section", "key", "after"),
    [
        ({"stage": 2, "cpu_offload": True}, "cpu_offload", {"offload_optimizer": {"device": "cpu"}}),
        ({"stage": 3, "cpu_offload_param": False}, "cpu_offload_param", {"offload_param": {"device": "none"}}),
        (
            {"stage": 3, "stage3_gather_fp16_weights_on_model_save": True},
            "stage3_gather_fp16_weights_on_model_save",
            {"stage3_gather_16bit_weights_on_model_save": True},
        ),
        ({"stage": 1, "cpu_offload_use_pin_memory": True}, "cpu_offload_use_pin_memory", None),
    ],
)
def test_deprecated_keys_of_zero(tmp_path: Path, section: dict[str, Any], key: str, after: Any) -> None:
    case = Case(tmp_path, cluster(None))
    found = case.improve(zero(**section))
    change = changed(found)[f"zero_optimization.{key}"]
    assert (change.before, change.after) == (section[key], after)
    assert "deprecated" in change.why
    assert key not in found.document["zero_optimization"]
    assert after is None or {**after, **found.document["zero_optimization"]} == found.document["zero_optimization"]
    assert found.plan.zero.offload_optimizer == case.read(zero(**section)).plan.zero.offload_optimizer
    require_sound(case, zero(**section), found)


def test_the_old_name_of_bf16_and_a_truth_value_for_zero(tmp_path: Path) -> None:
    case = Case(tmp_path, cluster(None))
    document = {**BASE, "zero_optimization": True, "allgather_size": 10**6}
    document = {("bfloat16" if key == "bf16" else key): value for key, value in document.items()}
    found = case.improve(document)
    assert found.plan.workload.precision == "bf16"
    assert list(found.document).index("bf16") == list(document).index("bfloat16")
    assert found.document["zero_optimization"]["stage"] == 1
    assert "allgather_size" not in found.document
    assert "bfloat16" not in found.document
    require_sound(case, document, found)
    twice = {**BASE, "bfloat16": {"enabled": False}}
    assert "bfloat16" not in case.improve(twice).document


def test_keys_that_the_stage_ignores_go_and_all_others_stay(tmp_path: Path) -> None:
    case = Case(tmp_path, cluster(None))
    document = zero(
        stage=2, sub_group_size=5, stage3_prefetch_bucket_size=7, offload_param=None, contiguous_gradients=False
    )
    found = case.improve(document)
    gone = {key.rpartition(".")[2] for key, change in changed(found).items() if change.after is None}
    assert gone == {"sub_group_size", "stage3_prefetch_bucket_size", "offload_param"}
    assert found.document["zero_optimization"]["contiguous_gradients"] is False
    for key, value in BASE.items():
        assert found.document[key] == value
    require_sound(case, document, found)


def test_the_verdicts_are_those_of_the_estimate() -> None:
    assert (improving.FITS, improving.TIGHT) == (estimator.FITS, estimator.TIGHT)
    names = {field.name for field in fields(ZeroConfig)}
    assert set(improving._SWITCHES) < names


def test_auto_stays_auto(tmp_path: Path) -> None:
    document = zero(stage=3, reduce_bucket_size="auto", stage3_prefetch_bucket_size="auto", sub_group_size=10**8)
    document["gradient_clipping"] = "auto"
    case = Case(tmp_path, cluster(None), consumer="hf", script=Script(model=MEDIUM))
    found = case.improve(document)
    assert found.document["zero_optimization"]["reduce_bucket_size"] == "auto"
    assert found.document["gradient_clipping"] == "auto"
    assert found.plan.zero.reduce_bucket_size == 1024**2
    assert found.resolved["zero_optimization"]["reduce_bucket_size"] == 1024**2
    assert (found.resolved["gradient_clipping"], found.resolved["train_batch_size"]) == (1.0, 4)
    require_sound(case, document, found)


def test_what_cannot_be_estimated_is_named(tmp_path: Path) -> None:
    case = Case(tmp_path, cluster(80 * GIB))
    with pytest.raises(InputError, match=r"mine.json: not modelled yet.*zero_quantized_weights = True"):
        case.improve(zero(stage=3, zero_quantized_weights=True))
    with pytest.raises(InputError, match=r"zero_optimization.stagee: unknown key; did you mean stage"):
        case.improve(zero(stagee=3))


def test_the_file_itself_is_not_touched(tmp_path: Path) -> None:
    case = Case(tmp_path, cluster(80 * GIB))
    case.improve(zero(stage=3, reduce_bucket_size=5e8))
    assert json.loads(case.path.read_text()) == zero(stage=3, reduce_bucket_size=5e8)


# Properties.


@pytest.mark.parametrize("memory", [None, 3 * GIB, 40 * GIB])
def test_emitted_strategies_improve_soundly(tmp_path: Path, memory: int | None) -> None:
    for plan in every_strategy()[::7]:
        device = None if memory is None else replace(H200, memory_bytes=memory)
        case = Case(tmp_path, replace(CLUSTER, accelerator=device), MODEL)
        document = emit(plan, MODEL, CLUSTER)
        require_sound(case, document, case.improve(document))


@settings(max_examples=50, deadline=None, derandomize=True)
@given(plan=plans(), memory=st.sampled_from([None, 2 * GIB, 8 * GIB, 80 * GIB]))
def test_any_plan_improves_soundly(tmp_path_factory: pytest.TempPathFactory, plan: Plan, memory: int | None) -> None:
    device = None if memory is None else replace(H200, memory_bytes=memory)
    plan = replace(plan, workload=replace(plan.workload, gradient_accumulation_steps=1, micro_batch_size=2))
    case = Case(tmp_path_factory.mktemp("improve"), replace(CLUSTER, accelerator=device), MODEL)
    document = emit(plan, MODEL, CLUSTER)
    require_sound(case, document, case.improve(document))


# Reports.


def test_the_table_and_the_document(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    found = Case(tmp_path, cluster(80 * GIB)).improve(zero(stage=3, stage3_max_live_parameters=1))
    made = improvement_document(found)
    assert json.loads(json.dumps(made)) == made
    assert made["before"]["peak_bytes"] == found.before.device.peak_bytes
    assert [change["key"] for change in made["changes"]] == [change.key for change in found.changes]
    print_improvement(stdout_console(), found)
    out = capsys.readouterr().out
    assert all(len(line) <= 80 for line in out.splitlines())
    for words in ("GPU peak, allocated", "CPU memory", "verdict", "fits", "removed"):
        assert words in out
    assert "zero_optimization.stage: 3 -> 0 (GPU peak " in out
    monkeypatch.setenv("COLUMNS", "160")
    print_improvement(stdout_console(), found)
    assert "before -> after" in capsys.readouterr().out
    nothing = Case(tmp_path, cluster(80 * GIB)).improve(found.document)
    print_improvement(stdout_console(), nothing)
    assert "nothing to improve" in " ".join(capsys.readouterr().out.split())


def test_the_stages_are_those_of_the_schema() -> None:
    keys = schema("deepspeed_config")["properties"]["zero_optimization"]["properties"]
    known = {key: list(stages) for key in keys if (stages := stages_of(key)) is not None}
    assert set(STAGES) <= set(known)
    assert known == {key: keys[key]["x-stages"] for key in known}
