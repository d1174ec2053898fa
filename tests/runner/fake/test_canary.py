"""The canary: what the dry run relies on in torch and DeepSpeed is still there, and still called the same way.

A test that fails here says that a new version changed something; the file that it names says what it was for.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from types import FunctionType
from typing import Any

import pytest

pytest.importorskip("deepspeed")

from runner.device.fake.accelerator import PretendAccelerator
from runner.device.fake.collectives import NAMES
from tests.runner.fake.test_patches import inside

#: Who relies on it -> what it is -> the parameters that are given to it by name or by place.
RELIED_ON: dict[str, dict[str, tuple[str, ...] | None]] = {
    "backend.py": {
        "torch.utils.backend_registration._setup_privateuseone_for_python_backend": ("rename", "backend_module"),
        "torch.utils.backend_registration._DummyBackendModule": None,
    },
    "group.py": {
        "torch.testing._internal.distributed.fake_pg._create_fake_pg": ("common_opts", "backend_opts"),
        "torch.testing._internal.distributed.fake_pg.FakeStore": None,
        "torch.distributed.Backend.register_backend": ("name", "func", "extended_api", "devices"),
        "torch.distributed.init_process_group": ("backend", "store", "rank", "world_size"),
    },
    "importing.py": {"deepspeed.accelerator.real_accelerator.set_accelerator": ("accel_obj",)},
    "patches.py": {
        "torch.Tensor._make_subclass": None,
        "torch._C.TensorBase.data": None,
        "torch.optim.optimizer._foreach_supported_types": None,
        "torch.utils._foreach_utils._foreach_supported_types": None,
        "torch.nn.Module._apply": ("self", "fn", "recurse"),
        "torch._subclasses.fake_tensor.FakeTensor.record_stream": None,
        "torch._subclasses.fake_tensor.FakeTensor.pin_memory": None,
        "torch._subclasses.fake_tensor.FakeTensor.is_pinned": None,
        "deepspeed.ops.op_builder.builder.OpBuilder.load": ("self", "verbose"),
        "deepspeed.ops.op_builder.builder.OpBuilder.jit_load": ("self", "verbose"),
        "deepspeed.runtime.zero.utils.assert_ints_same_as_other_ranks": None,
        "deepspeed.runtime.zero.utils.assert_lst_len_same_as_other_ranks": None,
        "deepspeed.runtime.zero.partition_parameters.assert_ints_same_as_other_ranks": None,
    },
    "reducer.py": {
        "torch.distributed.Reducer": None,
        "torch.distributed.Logger": None,
        "torch.distributed._verify_params_across_processes": None,
        "torch._C._distributed_c10d._compute_bucket_assignment_by_size": None,
        "torch.nn.parallel.distributed.DistributedDataParallel._ddp_init_helper": (
            "parameters",
            "expect_sparse_gradient",
            "param_to_name_mapping",
            "static_graph",
        ),
    },
    "compiler.py": {
        "torch.compile": None,
        "torch._dynamo.config": None,
        "torch._dynamo.disable": ("fn",),
        "torch._dynamo.graph_break": (),
        "torch._dynamo.source": None,
        "torch._dynamo.trace_rules.clear_lru_cache": (),
        "torch._dynamo.utils": None,
    },
    "collectives.py": {f"torch.distributed.{name}": ("async_op",) for name in NAMES},
    "attention.py": {
        "torch.nn.functional.scaled_dot_product_attention": None,
        "torch.ops.aten._scaled_dot_product_flash_attention": None,
        "torch.ops.aten._scaled_dot_product_efficient_attention": None,
    },
    "tracking.py": {
        "torch._subclasses.fake_tensor.FakeTensorMode": ("allow_non_fake_inputs",),
        "torch._subclasses.fake_tensor.FakeTensor.fake_device": None,
        "torch.utils._python_dispatch.TorchDispatchMode": None,
        "torch.ops.prim.device.default": None,
        "torch.ops.aten._local_scalar_dense.default": None,
        "torch.UntypedStorage._cdata": None,
    },
    "hidden.py": {"torch._C._current_graph_task_id": None},
    "runner/train.py": {"torch.utils._python_dispatch._disable_current_modes": ()},
}

#: Methods of CUDA_Accelerator that touch torch.cuda and are not overridden: nothing that a dry run covers calls them.
NOT_COVERED = {
    "prefer_triton_grouped_mm",  # mixtures of experts
    "create_graph",  # CUDA graphs
    "capture_to_graph",
    "register_host_memory",  # compiled engines with their own offload (DeepCompile)
    "unregister_host_memory",
}


def found(path: str) -> Any:
    """What a dotted path names; also below an object that is no module."""
    import importlib

    parts = path.split(".")
    for length in range(len(parts), 0, -1):
        try:
            value = importlib.import_module(".".join(parts[:length]))
        except ImportError:
            continue
        for part in parts[length:]:
            value = getattr(value, part)
        return value
    raise AttributeError(path)


@pytest.mark.parametrize(
    ("relying", "path", "parameters"),
    [(relying, path, parameters) for relying, paths in RELIED_ON.items() for path, parameters in paths.items()],
)
def test_what_the_dry_run_relies_on_is_there(relying: str, path: str, parameters: tuple[str, ...] | None) -> None:
    try:
        value = found(path)
    except AttributeError:
        pytest.fail(f"{path} is gone, on which runner/device/fake/{relying} relies")
    if parameters is not None:
        named = inspect.signature(value).parameters
        missing = [name for name in parameters if name not in named]
        assert not missing, f"{path} no longer takes {missing}, which runner/device/fake/{relying} relies on: {named}"


def test_the_data_of_a_tensor_is_a_descriptor_of_c() -> None:
    descriptor = found("torch._C.TensorBase.data")
    assert inspect.isgetsetdescriptor(descriptor), "patches.py sets and gets .data through this descriptor"


def test_the_types_that_torch_updates_together_are_a_list() -> None:
    assert isinstance(found("torch.optim.optimizer._foreach_supported_types"), list), "patches.py appends FakeTensor"


@pytest.mark.engine
def test_torch_makes_a_device_with_keys_of_its_own_and_a_group_of_pretended_ranks() -> None:
    name, device, rank, size, backend, expected = inside("making_subclasses")
    assert device in (name, "meta"), "torch.Tensor._make_subclass no longer takes device_for_backend_keys as it did"
    assert (rank, size, backend) == ("2", "3", expected)


def members(kind: type) -> dict[str, Any]:
    return {name: value for name, value in vars(kind).items() if not name.startswith("__")}


def parent() -> type:
    return PretendAccelerator.__mro__[1]


def test_every_attribute_that_is_pretended_exists_on_deepspeed_s() -> None:
    own = {name for name in members(PretendAccelerator) if not name.startswith("_abc")}
    gone = sorted(name for name in own if not hasattr(parent(), name))
    assert gone == [], f"{parent().__name__} no longer has these: nobody calls what accelerator.py has in their place"


def function_of(value: Any) -> FunctionType | None:
    value = value.fget if isinstance(value, property) else value
    return value if isinstance(value, FunctionType) else None


def touches_cuda(function: FunctionType) -> bool:
    """Whether a function's code names torch.cuda or a CUDA device; a comment or a docstring does not count."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node).startswith("torch.cuda"):
            return True
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("cuda"):
            return True
        if isinstance(node, ast.Name) and node.id == "pynvml":
            return True
    return False


def test_no_method_that_touches_cuda_is_inherited() -> None:
    overridden = members(PretendAccelerator)
    inherited = {
        name
        for name, value in members(parent()).items()
        if name not in overridden and (function := function_of(value)) is not None and touches_cuda(function)
    }
    # NVML is opened by __init__, which is not the parent's; its GPU's number is asked for by available_memory.
    inherited -= {"_init_pynvml"}
    assert inherited - NOT_COVERED == set(), "these would ask torch for a CUDA device; override them in accelerator.py"
    assert NOT_COVERED - inherited == set(), "these need not be listed any more"


def test_overridden_methods_take_what_deepspeed_s_take() -> None:
    wrong = []
    for name, value in members(PretendAccelerator).items():
        own, theirs = function_of(value), function_of(vars(parent()).get(name))
        if own is None or theirs is None or isinstance(value, property):
            continue
        try:
            inspect.signature(own).bind(*inspect.signature(theirs).parameters)
        except TypeError as error:
            wrong.append(f"{name}: {error}")
    assert wrong == [], "accelerator.py does not take the parameters of CUDA_Accelerator"


def test_the_types_of_tensors_are_pretended() -> None:
    makers = {name for name in members(parent()) if name.endswith("Tensor")}
    assert makers == {name for name in members(PretendAccelerator) if name.endswith("Tensor")}
