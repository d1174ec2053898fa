"""torch's compiler, which a dry run does not start: fake tensors hold nothing to compute with.

What torch.compile would have made runs as it is written, with the temporaries of its lines, but for Muon's update,
which DeepSpeed compiles (``inductor``). The compiler itself, with inductor two seconds of imports, is left out until
something asks for what is in it.
"""

from __future__ import annotations

import functools
import gc
import importlib
import importlib.util
import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import torch

_NAME = "torch._dynamo"
_SOURCE = "torch._dynamo.source"  # imports the package's utilities, which take longest
#: What DeepSpeed compiles (deepspeed/runtime/zero/muon/original_muon.py).
_UPDATE = ("deepspeed.runtime.zero.muon.original_muon", "muon_update")
#: Submodules that do not need the package around them.
_ALONE = frozenset({"config", "source", "utils"})


class ConstantSource:
    """In the place of torch._dynamo.source.ConstantSource: the name that fake tensors give a real one, which nobody
    reads where no shapes are symbols (torch/_subclasses/meta_utils.py, MetaConverter.meta_tensor)."""

    def __init__(self, source_name: str) -> None:
        self.source_name = source_name


class RandomValueSource:
    """In the place of torch._dynamo.source.RandomValueSource, which fake tensors ask whether a source is one of them
    (torch/_subclasses/fake_tensor.py, FakeTensorConverter.from_real_tensor)."""


class _Postponed(ModuleType):
    """A module that is run when something asks for what it lacks; some submodules are imported without."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # the import system looks for what a package need not have
            raise AttributeError(name)
        if name in _ALONE:
            return importlib.import_module(f"{self.__name__}.{name}")
        _run(self)
        return getattr(self, name)


class _RunFirst:
    """Finds nothing: inductor and the package import one another, and only begun with the package does it work."""

    def __init__(self, package: ModuleType) -> None:
        self._package = package

    def find_spec(self, name: str, _path: object = None, _target: object = None) -> None:
        if name == "torch._inductor" and isinstance(self._package, _Postponed):
            _run(self._package)


def _run(package: ModuleType) -> None:
    package.__class__ = ModuleType  # once: while it runs, what is missing is missing
    for name in _PRETENDED[package.__name__]:
        delattr(package, name)
    spec = package.__spec__
    assert spec is not None
    assert spec.loader is not None
    spec.loader.exec_module(package)


def postpone() -> None:
    """Leave torch's compiler out, unless somebody has imported it already; for the child process of one run.

    torch imports it for its settings alone (torch/_subclasses/fake_tensor.py, FakeTensorMode.__init__), to keep it away
    from functions (torch/_compile.py, _disable_dynamo), and to tell it of steps and process groups (torch/optim/
    optimizer.py, _use_grad; torch/distributed/distributed_c10d.py, init_process_group), of which there is no need
    where nothing is compiled. Fake tensors of real ones take two names from a submodule.
    """
    if _NAME in sys.modules:
        return
    package = vars(torch)["_dynamo"] = _postponed(_NAME)
    sys.meta_path.insert(0, _RunFirst(package))
    vars(package)["source"] = _postponed(_SOURCE)


def _postponed(name: str) -> ModuleType:
    spec = importlib.util.find_spec(name)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    module.__class__ = _Postponed
    vars(module).update(_PRETENDED[name])
    sys.modules[name] = module
    return module


def as_written(function: Any = None, *_: Any, **__: Any) -> Any:
    """``function`` itself; a decorator of both forms."""
    return as_written if function is None else function


def compiling(room: Callable[[], int]) -> Callable[..., Any]:
    """In the place of ``torch.compile``, which it returns: the function itself, or Muon's update with the buffers of
    compiled code. torch would import inductor, thousands of objects, which sets off the garbage collector: what a
    model's construction has left behind is gone from then on.

    Args:
        room: says by how many bytes the device's level is below its highest so far.
    """

    def compiled(function: Any = None, *_: Any, **__: Any) -> Any:
        gc.collect()
        if function is not None and is_muons(function):
            return _with_buffers(function, room)
        return as_written(function)

    return compiled


def is_muons(function: Callable[..., Any]) -> bool:
    """Whether ``function`` is the update."""
    return (function.__module__, function.__name__) == _UPDATE


def _with_buffers(function: Callable[..., Any], room: Callable[[], int]) -> Callable[..., Any]:
    """The update as inductor makes it. DeepSpeed has it compiled in every run with ZeRO, and calls it in few."""

    @functools.cache
    def made() -> Callable[..., Any]:
        from runner.device.fake.inductor import with_buffers

        return with_buffers(function, room)

    @functools.wraps(function)
    def update(*arguments: Any, **options: Any) -> Any:
        return made()(*arguments, **options)

    return update


def _nothing(*_: Any, **__: Any) -> None:
    """There is nothing to tell."""


_PRETENDED: dict[str, dict[str, Any]] = {
    _NAME: {
        "disable": as_written,
        "graph_break": _nothing,
        "trace_rules": SimpleNamespace(clear_lru_cache=_nothing),
    },
    _SOURCE: {"ConstantSource": ConstantSource, "RandomValueSource": RandomValueSource},
}
