"""torch's compiler, which a dry run does not start: fake tensors hold nothing to compute with.

What torch.compile would have made runs as it is written, with the temporaries of its lines (DeepSpeed compiles Muon's
update). The compiler itself, with inductor two seconds of imports, is left out until something asks for what is in it.
"""

from __future__ import annotations

import gc
import importlib
import importlib.util
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import torch

_NAME = "torch._dynamo"
#: Submodules that do not need the package around them.
_ALONE = frozenset({"config", "source", "utils"})


class _Postponed(ModuleType):
    """A package that is run when something asks for what it lacks; some submodules are imported without."""

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
    for name in _PRETENDED:
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
    where nothing is compiled.
    """
    spec = None if _NAME in sys.modules else importlib.util.find_spec(_NAME)
    if spec is None:
        return
    package = importlib.util.module_from_spec(spec)
    package.__class__ = _Postponed
    vars(package).update(_PRETENDED)
    sys.modules[_NAME] = vars(torch)["_dynamo"] = package
    sys.meta_path.insert(0, _RunFirst(package))
    importlib.import_module(f"{_NAME}.source")  # fake tensors of real ones ask for it (FakeTensorConverter)


def as_written(function: Any = None, *_: Any, **__: Any) -> Any:
    """``function`` itself; a decorator of both forms."""
    return as_written if function is None else function


def compiled(function: Any = None, *_: Any, **__: Any) -> Any:
    """In the place of ``torch.compile``: ``function`` itself. torch would import inductor, thousands of objects, which
    sets off the garbage collector: what a model's construction has left behind is gone from then on."""
    gc.collect()
    return as_written(function)


def _nothing(*_: Any, **__: Any) -> None:
    """There is nothing to tell."""


_PRETENDED: dict[str, Any] = {
    "disable": as_written,
    "graph_break": _nothing,
    "trace_rules": SimpleNamespace(clear_lru_cache=_nothing),
}
