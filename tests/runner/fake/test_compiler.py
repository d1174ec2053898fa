"""torch's compiler is left out of a dry run, and is there for whoever asks for it."""

from __future__ import annotations

import pytest

pytest.importorskip("deepspeed")

from runner.device.fake.compiler import as_written, compiling
from tests.runner.fake.test_patches import inside


def test_what_is_compiled_is_the_function_as_it_is_written() -> None:
    def function() -> None: ...

    for decorator in (as_written, compiling(lambda: 0)):
        assert decorator(function) is function
        assert decorator(dynamic=True)(function) is function
        assert decorator()(function) is function


@pytest.mark.engine
def test_optimizers_step_and_muon_updates_without_the_compiler() -> None:
    found = inside("postponing")
    assert found["shape"] == [4, 8]
    assert found["is_the_package"]
    assert found["loaded"] == [], "what imports torch's compiler now? it costs every dry run two seconds"


@pytest.mark.engine
def test_what_asks_for_more_of_the_compiler_gets_the_real_one() -> None:
    found = inside("postponing")
    assert found["asked"] is False
    assert found["loaded_then"] == ["torch._dynamo.convert_frame"]
    assert found["same_package"]
    assert found["disable"] == "torch._dynamo.decorators"


@pytest.mark.engine
def test_inductor_can_be_imported_all_the_same() -> None:
    assert inside("importing_inductor") == ["torch._dynamo.decorators", "compile_fx"]
