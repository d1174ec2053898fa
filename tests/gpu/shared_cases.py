"""Four and eight ranks on two cards, and eight on four: ``python -m tests.gpu.sweep shared-4 OUTPUT.json --gpus 2``.

The first three cases of four ranks are those of which there are records from four cards: what a rank allocates must be
the same to the byte. The models of eight ranks are those of the published benchmark.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tests.gpu.cases import BENCH, CPU, SDPA, SETS, Case
from tests.gpu.hf_cases import HfCase


def _again(name: str) -> Case:
    found = next(case for cases in SETS.values() for case in cases if case.name == name)
    return replace(found, name=f"{name}-on2", devices=2)


_FOUR: dict[str, Any] = {"gpus": 4, "devices": 2, "tune": True}

SHARED_4 = [
    _again("gpt2-z0-bf16-n4"),
    _again("1.7B-z3-default-n4"),
    _again("gpt2-xl-z2-offload-n4"),
    HfCase(
        name="llama-1b-z3-s2048-n4-on2",
        model="llama-3.2-1b",
        stage=3,
        **_FOUR,
        micro_batch_size=1,
        sequence_length=2048,
    ),
    HfCase(
        name="qwen2.5-0.5b-z2-ckpt-s4096-n4-on2",
        model="qwen2.5-0.5b",
        stage=2,
        **_FOUR,
        checkpointing="torch",
        micro_batch_size=1,
        sequence_length=4096,
    ),
    HfCase(
        name="llama-8b-8l-z3-ckpt-s4096-n4-on2",
        model="llama-3.1-8b",
        stage=3,
        **_FOUR,
        shape={"num_layers": 8},
        checkpointing="torch",
        micro_batch_size=1,
        sequence_length=4096,
    ),
    Case(
        name="gpt2-large-z2-offload-gas2-n4-on2",
        model="gpt2-large",
        zero=CPU,
        **_FOUR,
        gradient_accumulation_steps=2,
        micro_batch_size=2,
        shape=SDPA,
    ),
    Case(
        name="gpt2-xl-z1-fp16-ckpt-n4-on2",
        model="gpt2-xl",
        stage=1,
        precision="fp16",
        checkpointing="torch",
        micro_batch_size=2,
        **_FOUR,
    ),
]

_ONE = {"micro_batch_size": 1, "tune": True, "devices": 2, "gpus": 8, **BENCH}

SHARED_8 = [
    Case(name="453M-z2-n8-on2", model="453M", stage=2, **_ONE),
    Case(name="1.7B-z2-n8-on2", model="1.7B", stage=2, **_ONE),
    Case(name="1.7B-z3-n8-on2", model="1.7B", stage=3, **_ONE),
    Case(name="1.7B-z3-offload-n8-on2", model="1.7B", stage=3, zero=CPU, **_ONE),
    Case(name="1.7B-z3-offload-ckpt-n8-on2", model="1.7B", stage=3, zero=CPU, checkpointing="deepspeed", **_ONE),
    Case(name="10B-z3-n8-on2", model="10B", stage=3, steps=3, **_ONE),
]

_FOUR_CARDS = {**_ONE, "devices": 4, "steps": 3}

SHARED_8_ON_4 = [
    Case(name="1.7B-z3-offload-n8-on4", model="1.7B", stage=3, zero=CPU, **_FOUR_CARDS),
    Case(name="1.7B-z3-offload-ckpt-n8-on4", model="1.7B", stage=3, zero=CPU, checkpointing="deepspeed", **_FOUR_CARDS),
    Case(name="10B-z3-n8-on4", model="10B", stage=3, **_FOUR_CARDS),
    Case(name="453M-z2-n8-on4", model="453M", stage=2, **_FOUR_CARDS),
    Case(name="1.7B-z0-n8-on4", model="1.7B", stage=0, **_FOUR_CARDS),
    Case(name="1.7B-z2-n8-on4", model="1.7B", stage=2, **_FOUR_CARDS),
    Case(name="1.7B-z3-n8-on4", model="1.7B", stage=3, **_FOUR_CARDS),
    Case(name="16.9B-z3-n8-on4", model="20B", shape={"num_layers": 21}, stage=3, **_FOUR_CARDS),
    Case(name="20B-z3-offload-n8-on4", model="20B", stage=3, zero=CPU, **_FOUR_CARDS),
]
