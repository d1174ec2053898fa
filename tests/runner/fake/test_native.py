"""runner.device.fake.native: operators that are covered, and how the others are refused."""

from __future__ import annotations

import pytest

pytest.importorskip("deepspeed")

from runner.device.fake.native import COVERED, NativeOperator


@pytest.mark.parametrize("name", ["transformer_inference", "evoformer_attn", "fused_lamb", ""])
def test_an_operator_that_is_not_covered_is_refused_by_name(name: str) -> None:
    with pytest.raises(NotImplementedError, match=f"the dry run does not cover DeepSpeed's operator '{name}'"):
        NativeOperator(name)


@pytest.mark.parametrize("name", sorted(COVERED))
def test_a_function_that_is_not_covered_is_refused_by_name(name: str) -> None:
    with pytest.raises(NotImplementedError, match=f"does not cover 'fly' of DeepSpeed's operator '{name}'"):
        _ = NativeOperator(name).fly


@pytest.mark.parametrize("name", ["fused_adam", "fused_lion", "cpu_adam", "cpu_adagrad", "cpu_lion"])
def test_an_optimizer_s_kernel_takes_anything_and_gives_nothing(name: str) -> None:
    for function in COVERED[name]:
        assert getattr(NativeOperator(name), function)(0, [], lr=1.0) == 0


def test_every_name_is_one_of_deepspeed_s_operators() -> None:
    """A name that DeepSpeed changes would be refused as unknown, and this one never be asked for."""
    import importlib
    import pkgutil

    from deepspeed.ops import op_builder

    known = set()
    for package in (op_builder, importlib.import_module("deepspeed.ops.op_builder.cpu")):
        for module in pkgutil.iter_modules(package.__path__):
            if not module.ispkg and module.name != "all_ops":
                members = vars(importlib.import_module(f"{package.__name__}.{module.name}")).values()
                known |= {member.NAME for member in members if isinstance(getattr(member, "NAME", None), str)}
    assert set(COVERED) <= known
