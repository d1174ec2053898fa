"""runner.device.fake.source: whose line asked for memory."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

from runner.device.fake import source
from runner.device.fake.source import AUTOGRAD, caller

#: Calls, on line 2, the first of the functions that it is given with the others.
PASSING_ON = "def step(callees):\n    return callees[0](callees[1:])\n"


def function(filename: str) -> Callable[..., tuple[str, str]]:
    """A function that lies in ``filename`` and passes on."""
    found: dict[str, Callable[..., tuple[str, str]]] = {}
    exec(compile(PASSING_ON, filename, "exec"), found)
    return found["step"]


def asked_through(*filenames: str) -> tuple[str, str]:
    """What is found when the first calls the second, and so on, and the last one calls who asks."""
    first, *others = map(function, filenames)
    return first([*others, lambda _: caller()])


@pytest.fixture(autouse=True)
def unknown_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "_known", {})


@pytest.mark.parametrize(
    ("filename", "where"),
    [
        ("/x/site-packages/deepspeed/runtime/zero/stage3.py", "deepspeed/runtime/zero/stage3.py:2"),
        ("/x/site-packages/torch/optim/adam.py", "torch/optim/adam.py:2"),
        ("/x/site-packages/torch/utils/checkpoint.py", "torch/utils/checkpoint.py:2"),
        ("/home/deepspeed/x/mingpt/model.py", "mingpt/model.py:2"),
        ("C:\\x\\deepspeed\\runtime\\engine.py", "deepspeed/runtime/engine.py:2"),
        ("/x/runner/train.py", "runner/train.py:2"),
    ],
)
def test_an_owner_is_named_from_its_package_on(filename: str, where: str) -> None:
    assert asked_through(filename) == ("step", where)


@pytest.mark.parametrize(
    ("filename", "where"),
    [
        ("lib/python3.11/contextlib.py", "runner/train.py:2"),
        ("lib/python3.11/site-packages/torch/nn/functional.py", "runner/train.py:2"),
        ("lib/python3.11/site-packages/deepspeed/runtime/engine.py", "deepspeed/runtime/engine.py:2"),
    ],
)
def test_a_folder_above_the_packages_owns_nothing(filename: str, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = "/opt/conda/envs/deepspeed"
    paths = [f"{environment}/lib/python3.11", f"{environment}/lib/python3.11/site-packages"]
    monkeypatch.setattr("sys.path", [*paths, *sys.path])
    assert asked_through("/x/runner/train.py", f"{environment}/{filename}")[1] == where


@pytest.mark.parametrize(
    "messenger",
    [
        "/x/torch/nn/functional.py",
        "/x/torch/utils/_python_dispatch.py",
        "/x/deepspeed/utils/nvtx.py",
        "/x/deepspeed/comm/comm.py",
        "/x/deepspeed/accelerator/cuda_accelerator.py",
        "/x/runner/device/fake/patches.py",
    ],
)
def test_who_only_passes_a_request_on_is_not_named(messenger: str) -> None:
    assert asked_through("/x/deepspeed/runtime/engine.py", messenger) == ("step", "deepspeed/runtime/engine.py:2")


def test_the_nearest_owner_is_named() -> None:
    assert asked_through("/x/deepspeed/runtime/engine.py", "/x/mingpt/model.py")[1] == "mingpt/model.py:2"


def test_a_backward_pass_is_autograd_s_and_a_hook_within_it_its_own() -> None:
    engine, graph = "/x/deepspeed/runtime/engine.py", "/x/torch/autograd/graph.py"
    assert asked_through(engine, graph) == AUTOGRAD
    assert asked_through(engine, graph, "/x/mingpt/model.py")[1] == "mingpt/model.py:2"
