"""What tests run in a process of their own, because a dry run takes a process over: ``python -m ...inside FUNCTION``.

Each function prints one JSON document.
"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import sys
from types import ModuleType
from typing import Any

ABSENT = "absent"
#: Parts of torch's compiler that take long to import.
_COMPILER = ("torch._dynamo.convert_frame", "torch._dynamo.utils", "torch._inductor")


def importing() -> list[str]:
    """What importing every module of runner changes in torch and DeepSpeed."""
    import deepspeed
    import torch
    import torch._dynamo
    from torch._subclasses.fake_tensor import FakeTensor

    watched = [torch, torch.Tensor, torch.nn.Module, torch.nn.functional, FakeTensor, torch.distributed, deepspeed]
    watched += [
        module
        for name, module in list(sys.modules.items())
        if name.startswith(("deepspeed.", "torch.optim.", "torch.utils.")) and isinstance(module, ModuleType)
    ]
    watched.append(importlib.import_module("deepspeed.ops.op_builder.builder").OpBuilder)
    before = [(owner, dict(vars(owner))) for owner in watched]
    foreach = list(importlib.import_module("torch.optim.optimizer")._foreach_supported_types)
    accelerator = deepspeed.accelerator.get_accelerator()

    for module in pkgutil.walk_packages(importlib.import_module("runner").__path__, "runner."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)  # and with it what it needs of dsplan, which never loads torch

    changed = [
        f"{getattr(owner, '__name__', owner)}.{name}"
        for owner, names in before
        for name, value in names.items()
        if vars(owner).get(name, ABSENT) is not value
    ]
    if importlib.import_module("torch.optim.optimizer")._foreach_supported_types != foreach:
        changed.append("_foreach_supported_types")
    if torch._C._get_privateuse1_backend_name() != "privateuseone":
        changed.append("the name of PrivateUse1")
    if deepspeed.accelerator.get_accelerator() is not accelerator:
        changed.append("DeepSpeed's accelerator")
    return changed


def patching(device_type: str) -> list[dict[str, Any]]:
    """Every patch of a dry run on the device: whether upstream still has it, and whether it is undone on leaving."""
    import torch

    from dsplan.catalogue import accelerator
    from dsplan.kernels import kernels_of
    from dsplan.overhead import process_memory
    from dsplan.verify_device import CPU
    from runner.device.fake import patches
    from runner.device.fake.answers import Answers
    from runner.device.fake.backend import NAME, register
    from runner.device.fake.hidden import Workspaces
    from runner.device.fake.importing import import_deepspeed
    from runner.device.fake.memory import Memory, PlainAllocator
    from runner.device.fake.tracking import Tracker

    if device_type == NAME:
        register()
    device = torch.device(device_type)
    kernels = kernels_of(CPU if device_type == "cpu" else accelerator("h200"))
    seen: list[tuple[patches.Patch, bool, Any]] = []
    applied = patches.Patch.applied

    def noting(patch: patches.Patch) -> Any:
        there = hasattr(patch.owner, patch.attribute)
        seen.append((patch, there, vars(patch.owner).get(patch.attribute, ABSENT)))
        return applied(patch)

    patches.Patch.applied = noting  # type: ignore[method-assign]
    foreach = importlib.import_module("torch.optim.optimizer")._foreach_supported_types
    supported = list(foreach)
    tracker = Tracker(Memory(PlainAllocator(), process_memory(1)), device_type, Answers(), Workspaces(kernels))
    with patches.patched_torch(tracker, device, kernels, lambda: 0):
        during = len(foreach)
        import_deepspeed(None)
        with patches.patched_deepspeed():
            replaced = {id(patch): vars(patch.owner)[patch.attribute] for patch, _, _ in seen}
    assert during == len(supported) + 1
    assert foreach == supported
    return [
        {
            "name": f"{patch.owner.__name__}.{patch.attribute}",
            "there": there,
            "replaced": replaced[id(patch)] is not earlier,
            "undone": vars(patch.owner).get(patch.attribute, ABSENT) is earlier,
            "reason": patch.reason,
        }
        for patch, there, earlier in seen
    ]


def importing_deepspeed_late() -> str:
    """What is said when DeepSpeed is there already."""
    import deepspeed  # noqa: F401

    from runner.device.fake.importing import import_deepspeed

    try:
        import_deepspeed(None)
    except RuntimeError as error:
        return str(error)
    return ""


def postponing() -> dict[str, Any]:
    """What of torch's compiler is imported by what a dry run does, and whether it is there when it is asked for."""
    from dataclasses import asdict

    from runner.device.fake.compiler import postpone
    from runner.spec import RunSpec

    postpone()
    import torch

    from dsplan.catalogue import accelerator
    from runner.device.fake.device import FakeDevice

    kept = FakeDevice(
        RunSpec(model={}, ds_config={}, sequence_length=1, device="fake", rank=0, target=asdict(accelerator("h200")))
    )
    from deepspeed.runtime.zero.muon.original_muon import muon_update

    weight = torch.nn.Parameter(torch.zeros(4, 8, device="pretend"))
    weight.grad = torch.zeros_like(weight)
    torch.optim.AdamW([weight]).step()
    compiler = sys.modules["torch._dynamo"]
    assert torch.tensor([1, 2]).to("pretend").shape == (2,)  # made from a real tensor
    before = {
        "shape": list(muon_update(weight.grad, torch.zeros_like(weight)).shape),
        "loaded": [name for name in _COMPILER if name in sys.modules],
        "is_the_package": torch._dynamo is compiler,
    }
    asked = torch._dynamo.is_compiling()  # what the stand-in lacks
    assert kept.backend == "fake"
    return {
        **before,
        "asked": asked,
        "loaded_then": [name for name in ("torch._dynamo.convert_frame",) if name in sys.modules],
        "same_package": torch._dynamo is compiler,
        "disable": torch._dynamo.disable.__module__,
    }


def importing_inductor() -> list[str]:
    """What is there once somebody has imported inductor."""
    from runner.device.fake.compiler import postpone

    postpone()
    import torch
    import torch._inductor.compile_fx

    return [torch._dynamo.disable.__module__, torch._inductor.compile_fx.compile_fx.__name__]


def making_subclasses() -> list[str]:
    """What torch's own functions, which the dry run calls with arguments that no signature shows, make of them."""
    import torch

    from runner.device.fake.backend import BACKEND, NAME, register
    from runner.device.fake.group import join

    register()
    device = torch.device(NAME, 0)
    meta = torch.empty(2, device="meta")
    made = torch.Tensor._make_subclass(torch.Tensor, meta, False, device_for_backend_keys=device)
    join(2, 3, ["cpu", NAME])
    group = torch.distributed
    return [
        NAME,
        str(made.device.type),
        str(group.get_rank()),
        str(group.get_world_size()),
        group.get_backend(),
        BACKEND,
    ]


if __name__ == "__main__":
    os.environ["DS_ACCELERATOR"] = "cpu"
    print(json.dumps(globals()[sys.argv[1]](*sys.argv[2:])), flush=True)  # noqa: T201
    os._exit(0)  # a group that pretends its peers is not taken down
