"""A configuration said to another release: nothing changes silently, and nothing is said that it does not know."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import deepcopy
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsplan.dsconfig import DEEPSPEED_VERSION
from dsplan.dsconfig.emit import emit
from dsplan.dsconfig.schema import validate
from dsplan.dsconfig.versions import (
    NEVER,
    allows,
    for_version,
    knows,
    parse_version,
    supported_versions,
    version_changes,
)
from dsplan.errors import InputError

from .strategies import CLUSTER, MODEL, every_strategy, plans

RELEASES = supported_versions()
#: One of each minor series, and the releases on both sides of a change.
EDGES = (
    *("0.9.0", "0.9.1", "0.9.2", "0.9.5", "0.10.3", "0.11.1", "0.12.2", "0.12.3", "0.13.5", "0.14.0", "0.14.1"),
    *("0.15.1", "0.15.2", "0.16.3", "0.16.4", "0.16.5", "0.17.0", "0.17.1", "0.17.6", "0.18.9"),
    *("0.19.2", "0.19.3", "0.19.4", "0.19.5", "0.19.7", "0.19.8"),
)
#: Strategies whose optimizer steps on the device.
ON_DEVICE = tuple(f"zero{stage}-{precision}-" for stage in range(4) for precision in ("fp32", "fp16", "bf16"))
DECAY = {"type": "WarmupDecayLR", "params": {"total_num_steps": 100, "warmup_num_steps": 1}}


def keys(section: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in section.items():
        yield f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from keys(value, f"{prefix}{key}.")


@cache
def _emitted() -> dict[str, dict[str, Any]]:
    return {plan.name: emit(plan, MODEL, CLUSTER) for plan in every_strategy()}


def emitted() -> dict[str, dict[str, Any]]:
    return {name: dict(document) for name, document in _emitted().items()}


def test_the_releases_are_those_of_the_history() -> None:
    assert (RELEASES[0], RELEASES[-1]) == ("0.9.0", DEEPSPEED_VERSION)
    assert list(RELEASES) == sorted(RELEASES, key=parse_version)
    assert len(RELEASES) == 73
    assert set(EDGES) <= set(RELEASES)


@pytest.mark.parametrize(
    ("text", "version"), [("0.16.9", (0, 16, 9)), ("v0.9.0", (0, 9, 0)), (" 0.19.8+cu128", (0, 19, 8))]
)
def test_a_release_is_read(text: str, version: tuple[int, int, int]) -> None:
    assert parse_version(text) == version


@pytest.mark.parametrize("text", ["0.8.3", "0.14", "0.16.10", "0.19.9", "1.0.0", "latest", "", "0.16.9rc1"])
def test_what_is_no_release_says_what_is(text: str) -> None:
    with pytest.raises(InputError, match=r"it must be a release from 0\.9\.0 to 0\.19\.8"):
        parse_version(text)


@pytest.mark.parametrize(
    ("text", "near"), [("0.20.0", "0.19.8"), ("1.0", "0.19.8"), ("0.8.0", "0.9.0"), ("0", "0.9.0")]
)
def test_of_a_release_beyond_all_the_last_or_first_is_named(text: str, near: str) -> None:
    with pytest.raises(InputError, match=rf"did you mean {near}\?"):
        parse_version(text)


def test_a_near_release_is_named() -> None:
    with pytest.raises(InputError, match=r"did you mean 0\.16\.1\?"):
        parse_version("0.16.10")


@settings(max_examples=30, deadline=None)
@given(plan=plans())
def test_the_release_itself_changes_nothing(plan: Any) -> None:
    document = emit(plan, MODEL, CLUSTER)
    before = deepcopy(document)
    result, changes = for_version(document, DEEPSPEED_VERSION)
    assert (result, changes) == (document, ())
    assert document == before
    result["zero_optimization"]["stage"] = 9
    assert document == before


@pytest.mark.parametrize("version", RELEASES)
def test_every_strategy_says_only_what_the_release_knows(version: str) -> None:
    refused, said = {}, set[str]()
    for name, document in emitted().items():
        if not allows("scheduler.type", "WarmupCosineLR", version):
            with pytest.raises(InputError, match=r"scheduler\.type: WarmupCosineLR needs DeepSpeed 0\.12\.3"):
                for_version(document, version)
            document["scheduler"] = DECAY
        try:
            result, changes = for_version(document, version)
        except InputError as error:
            refused[name] = str(error)
            continue
        said.update(keys(result))
        assert {change.action for change in changes} <= {"dropped", "renamed", "written"}
        # What the emitter wrote still stands; only what it left to the defaults is added.
        for key in document.keys() - {"zero_optimization", "aio", "bf16"}:
            assert result[key] == document[key]
    assert [key for key in sorted(said) if not knows(key, version)] == []
    target = parse_version(version)
    expected = {
        name
        for name in emitted()
        if ("-lion-" in name and target < (0, 11, 0))
        or ("zero3-half" in name and target < (0, 12, 3))
        or ("-adagrad-" in name and target < (0, 9, 2) and name.startswith(ON_DEVICE))
        or ("-muon-" in name and target < ((0, 18, 9) if name.startswith("zero3") else (0, 18, 3)))
    }
    assert set(refused) == expected


@settings(max_examples=100, deadline=None)
@given(plan=plans(), version=st.sampled_from(RELEASES))
def test_any_plan_says_only_what_the_release_knows_or_says_why_not(plan: Any, version: str) -> None:
    document = {**emit(plan, MODEL, CLUSTER), "scheduler": DECAY}
    before = deepcopy(document)
    refused = [change.key for change in version_changes(document, version) if change.action == "refused"]
    assert document == before
    if refused:
        with pytest.raises(InputError, match=refused[0]):
            for_version(document, version)
    else:
        assert [key for key in keys(for_version(document, version)[0]) if not knows(key, version)] == []


def test_a_result_is_a_fixed_point_of_its_own_release() -> None:
    """What was written for a release needs no second change of keys it has names for."""
    document = emitted()["zero3-offload-bf16-adamw-none"]
    for version in EDGES[11:]:
        result, _ = for_version(document, version)
        again, changes = for_version(result, version)
        assert again == result
        assert [change for change in changes if change.action == "written"] == []


BASE: dict[str, Any] = {"train_batch_size": 8, "gradient_clipping": 0.5, "steps_per_print": 7}


def changed(document: dict[str, Any], version: str) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    result, changes = for_version({**BASE, **document}, version)
    for key, value in BASE.items():
        assert result.pop(key) == value
    return result, [(change.key, change.action) for change in changes]


OFFLOAD = {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}
PINNED = {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu", "pin_memory": True}}}


@pytest.mark.parametrize(
    ("document", "version", "result", "changes"),
    [
        (OFFLOAD, "0.19.5", OFFLOAD, []),
        (OFFLOAD, "0.19.4", PINNED, [("zero_optimization.offload_optimizer.pin_memory", "written")]),
        (PINNED, "0.9.0", PINNED, []),
        (
            {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "none"}}},
            "0.9.0",
            {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "none"}}},
            [],
        ),
        ({"aio": {"intra_op_parallelism": 2}}, "0.16.4", {"aio": {"intra_op_parallelism": 2}}, []),
        (
            {"aio": {"queue_depth": 4, "intra_op_parallelism": 2, "use_gds": False}},
            "0.14.5",
            {"aio": {"queue_depth": 4, "thread_count": 2}},
            [("aio.intra_op_parallelism", "renamed"), ("aio.use_gds", "dropped")],
        ),
        (
            {"seq_parallel_communication_data_type": "bf16"},
            "0.13.0",
            {"seq_parallel_comm_data_type": "bfp16"},
            [("seq_parallel_communication_data_type", "renamed")] * 2,
        ),
        (
            {"seq_parallel_communication_data_type": "fp32"},
            "0.11.1",
            {},
            [("seq_parallel_communication_data_type", "dropped")],
        ),
        (
            {"communication_data_type": "BF16"},
            "0.14.0",
            {"communication_data_type": "bfp16"},
            [("communication_data_type", "renamed")],
        ),
        ({"communication_data_type": "bf16"}, "0.14.1", {"communication_data_type": "bf16"}, []),
        (
            {"autotuning": {"model_info": {"hidden_size": 8}}},
            "0.9.2",
            {"autotuning": {"model_info": {"hideen_size": 8}}},
            [("autotuning.model_info.hidden_size", "renamed")],
        ),
        ({"torch_autocast": {"enabled": False, "dtype": "bfloat16"}}, "0.17.1", {}, [("torch_autocast", "dropped")]),
        ({"compile": {"deepcompile": False}}, "0.14.0", {}, [("compile", "dropped")]),
        (
            {"zero_optimization": {"stage": 2, "zero_hpz_partition_size": 1}},
            "0.9.5",
            {"zero_optimization": {"stage": 2}},
            [("zero_optimization.zero_hpz_partition_size", "dropped")],
        ),
        (
            {"zero_optimization": {"stage": 1, "use_multi_rank_bucket_allreduce": False}},
            "0.12.3",
            {"zero_optimization": {"stage": 1}},
            [("zero_optimization.use_multi_rank_bucket_allreduce", "dropped")],
        ),
        ({"$schema": "a"}, "0.9.0", {"$schema": "a"}, []),
        ({"my_own": {"a": [1]}}, "0.9.0", {"my_own": {"a": [1]}}, []),
        (
            {"scheduler": {"type": "WarmupLR", "params": {}}, "optimizer": {"type": "Adam", "params": {"lr": 0.1}}},
            "0.17.1",
            {
                "scheduler": {"type": "WarmupLR", "params": {"warmup_max_lr": 0.1}},
                "optimizer": {"type": "Adam", "params": {"lr": 0.1}},
            },
            [("scheduler.params.warmup_max_lr", "written")],
        ),
        ({"scheduler": DECAY}, "0.9.0", {"scheduler": DECAY}, []),
        (
            {"optimizer": {"type": "AdamW", "params": {"fp32_optimizer_states": True}}},
            "0.19.0",
            {"optimizer": {"type": "AdamW", "params": {}}},
            [("optimizer.params.fp32_optimizer_states", "dropped")],
        ),
        (
            {**PINNED, "optimizer": {"type": "AdamW", "params": {"fp32_optimizer_states": False}}},
            "0.19.0",
            {**PINNED, "optimizer": {"type": "AdamW", "params": {"fp32_optimizer_states": False}}},
            [],
        ),
        (
            {"data_types": {"param_dtype": "fp32"}},
            "0.19.1",
            {"data_types": {}},
            [("data_types.param_dtype", "dropped")],
        ),
    ],
)
def test_changes(
    document: dict[str, Any], version: str, result: dict[str, Any], changes: list[tuple[str, str]]
) -> None:
    assert changed(document, version) == (result, changes)


def test_the_norm_is_clipped_and_nothing_is_printed_where_the_defaults_were_others() -> None:
    result, changes = for_version({"train_batch_size": 8, "steps_per_print": None}, "0.15.1")
    assert result == {"train_batch_size": 8, "steps_per_print": NEVER, "gradient_clipping": 1.0}
    assert {(change.key, change.action, change.reason) for change in changes} == {
        ("steps_per_print", "written", "0.15.1 would take 10 in its place"),
        ("gradient_clipping", "written", "0.15.1 would take 0.0 in its place"),
    }
    assert for_version({"train_batch_size": 8}, "0.19.3") == ({"train_batch_size": 8}, ())


@pytest.mark.parametrize(
    ("version", "section"),
    [
        ("0.16.4", {"enabled": True}),
        ("0.16.5", {"enabled": True, "immediate_grad_update": False}),
        ("0.17.0", {"enabled": True, "immediate_grad_update": False}),
        ("0.17.1", {"enabled": True, "check_grad_overflow": True}),
        ("0.19.2", {"enabled": True, "check_grad_overflow": True}),
        ("0.19.3", {"enabled": True}),
    ],
)
def test_bf16_checks_overflows_in_every_release(version: str, section: dict[str, Any]) -> None:
    result, _ = changed({"bf16": {"enabled": True}}, version)
    assert result == {"bf16": section}
    assert changed({"bf16": {"enabled": False}}, version)[0] == {"bf16": {"enabled": False}}


def test_what_no_key_of_the_release_can_change_is_told() -> None:
    document = {**BASE, "bf16": {"enabled": True}, "zero_optimization": {"stage": 3}}

    def told(version: str) -> set[str]:
        return {change.key for change in version_changes(document, version) if change.action == "dropped"}

    assert told("0.19.7") == {"data_types.keep_in_fp32_modules"}
    assert told("0.19.1") == {"data_types.keep_in_fp32_modules", "data_types.buffer_dtype"}
    assert told("0.17.6") == told("0.19.1") | {"zero_optimization.leaf_module.classes"}
    assert version_changes({**BASE, "zero_optimization": {"stage": 2}}, "0.18.0") == ()
    given = {**document, "data_types": {"keep_in_fp32_modules": [], "buffer_dtype": "bf16"}}
    assert [change.reason for change in version_changes(given, "0.19.1") if "data_types" in change.key] == [
        "new in 0.19.8, and 0.19.1 does what [] says",
        'new in 0.19.2, and 0.19.1 does what "bf16" says',
    ]


@pytest.mark.parametrize(
    ("document", "version", "message"),
    [
        ({"optimizer": {"type": "Muon"}}, "0.17.5", "optimizer.type: Muon needs DeepSpeed 0.17.6; 0.17.5 does not"),
        (
            {"optimizer": {"type": "muon"}, "zero_optimization": {"stage": 3}},
            "0.18.8",
            "optimizer.type: muon with stage 3 needs DeepSpeed 0.18.9",
        ),
        ({"optimizer": {"type": "Lion"}}, "0.10.3", "optimizer.type: Lion needs DeepSpeed 0.11.0"),
        ({"optimizer": {"type": "Adagrad"}}, "0.9.1", "optimizer.type: Adagrad needs DeepSpeed 0.9.2"),
        ({"optimizer": {"type": "Muon", "params": {"muon_lr": 1}}}, "0.18.2", "optimizer.params.muon_lr: 1 needs"),
        (
            {"zero_optimization": {"zero_hpz_partition_size": 8}},
            "0.9.5",
            "zero_optimization.zero_hpz_partition_size: 8 needs DeepSpeed 0.10.0; 0.9.5 cannot do it",
        ),
        (
            {"zero_optimization": {"offload_optimizer": {"device": "cpu", "ratio": 0.3}}},
            "0.12.2",
            "zero_optimization.offload_optimizer.ratio: 0.3 needs DeepSpeed 0.12.3",
        ),
        ({"zero_optimization": {"zenflow": {}}}, "0.17.4", "zero_optimization.zenflow: {} needs DeepSpeed 0.17.5"),
        ({"zero_optimization": {"leaf_module": {"names": ["a"]}}}, "0.17.6", "leaf_module.names: .* needs"),
        ({"torch_autocast": {"enabled": True}}, "0.17.1", "torch_autocast.enabled: true needs DeepSpeed 0.17.2"),
        ({"tensor_parallel": {"autotp_size": 2}}, "0.16.3", "tensor_parallel.autotp_size: 2 needs DeepSpeed 0.16.4"),
        ({"compile": {"offload_activation_pin_memory": False}}, "0.19.5", "offload_activation_pin_memory: false"),
        ({"compile": {"passes": ["z3", "autotp"]}}, "0.19.5", "compile.passes: autotp needs DeepSpeed 0.19.6"),
        ({"bf16": {"enabled": True, "check_grad_overflow": False}}, "0.17.0", "bf16.check_grad_overflow: false"),
        ({"gradient_allreduce_op": "sum"}, "0.19.5", 'gradient_allreduce_op: "sum" needs DeepSpeed 0.19.6'),
        ({"log_level": "warning"}, "0.19.2", 'log_level: "warning" needs DeepSpeed 0.19.3'),
        ({"seq_parallel_communication_data_type": "bf16"}, "0.11.1", "seq_parallel_communication_data_type"),
        ({"scheduler": {"type": "WarmupLR", "params": {}}}, "0.17.1", "scheduler.params.warmup_max_lr: absent"),
        ({"amp": {"enabled": True}}, "0.9.0", "amp: DeepSpeed 0.19.8 refuses it"),
        ({"amp": {"enabled": True}}, "0.19.8", "amp: DeepSpeed 0.19.8 refuses it"),
        ({}, "0.20.0", "deepspeed-version: '0.20.0' is not allowed"),
    ],
)
def test_what_the_release_cannot_do_names_the_key(document: dict[str, Any], version: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        for_version({**BASE, **document}, version)


def test_every_key_that_cannot_be_had_is_named_at_once() -> None:
    document = {"optimizer": {"type": "Muon"}, "tensor_parallel": {"autotp_size": 2}}
    with pytest.raises(InputError, match=r"optimizer\.type: .*; tensor_parallel\.autotp_size: "):
        for_version(document, "0.9.0")
    refused = [change.key for change in version_changes(document, "0.9.0") if change.action == "refused"]
    assert refused == ["optimizer.type", "tensor_parallel.autotp_size"]


@pytest.mark.parametrize(
    ("key", "first", "last"),
    [
        ("zero_optimization.stage", "0.9.0", None),
        ("zero_optimization.zero_hpz_partition_size", "0.10.0", None),
        ("zero_optimization.zenflow.offload", "0.17.5", None),
        ("zero_optimization.mics_shard_size", "0.9.2", "0.19.6"),
        ("zero_optimization.zeropp_loco_param", "0.16.2", "0.19.7"),
        ("compile.deepcompile", "0.16.6", None),
        ("compile.enabled", "0.13.2", "0.14.3"),
        ("aio.thread_count", "0.9.0", "0.16.3"),
        ("aio.intra_op_parallelism", "0.16.4", None),
        ("elasticity", "0.9.0", "0.19.7"),
        ("nebula", "0.9.0", "0.19.6"),
        ("comet.api_key", "0.14.3", None),
        ("bf16.check_grad_overflow", "0.17.1", None),
        ("scheduler.params.total_num_steps", "0.9.0", None),
        ("optimizer.params.nesterov", "0.9.0", None),
        ("scheduler.params.cos_min_ratio", "0.12.3", None),
        ("data_efficiency.data_sampling.curriculum_learning.curriculum_metrics.seqlen.max_difficulty", "0.9.0", None),
        ("disable_python_gc", "0.19.8", None),
    ],
)
def test_a_key_is_known_from_one_release_to_another(key: str, first: str, last: str | None) -> None:
    start = RELEASES.index(first)
    stop = len(RELEASES) if last is None else RELEASES.index(last) + 1
    assert [release for release in RELEASES if knows(key, release)] == list(RELEASES[start:stop])


@pytest.mark.parametrize("key", ["gradient_cliping", "zero_optimization.stag", "optimizer.params.max_grad_norm"])
def test_what_no_release_knows_is_not_known(key: str) -> None:
    assert not any(knows(key, release) for release in RELEASES)


def test_what_is_made_for_the_newest_release_but_one_is_valid_here_too() -> None:
    for document in emitted().values():
        assert validate(for_version(document, "0.19.7")[0]) == []
