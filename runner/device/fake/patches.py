"""Every place where torch or DeepSpeed is made to take part in a dry run, each with its reason.

Entered once, in the child process of one run; undone on leaving, or with the process. ``compiler`` says how torch's
compiler is left out.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch._meta_registrations
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._mode_utils import no_dispatch

from dsplan.kernels import Kernels
from runner.device.fake import autocast
from runner.device.fake import kernels as own_kernels
from runner.device.fake.answers import Answers
from runner.device.fake.attention import fused_attention
from runner.device.fake.collectives import NAMES, UnderWay, holding
from runner.device.fake.compiler import compiling
from runner.device.fake.flattening import gathering_flat
from runner.device.fake.grouped import grouped_product
from runner.device.fake.native import NativeOperator
from runner.device.fake.reducer import Logger, Reducer
from runner.device.fake.softmax import half_to_float
from runner.device.fake.streams import Stream
from runner.device.fake.tracking import Tracker
from runner.device.fake.views import get_item, narrow

_ABSENT = object()
_LONGEST_SHAPE = 8


@dataclass(frozen=True, slots=True)
class Patch:
    """One attribute that is replaced. ``reason`` says why, and which code upstream it answers."""

    owner: Any
    attribute: str
    value: Any
    reason: str

    @contextmanager
    def applied(self) -> Iterator[None]:
        if not hasattr(self.owner, self.attribute):
            raise RuntimeError(
                f"{self.owner.__name__}.{self.attribute} is gone, which the dry run replaces because: {self.reason}"
            )
        earlier = vars(self.owner).get(self.attribute, _ABSENT)
        setattr(self.owner, self.attribute, self.value)
        try:
            yield
        finally:
            if earlier is _ABSENT:
                delattr(self.owner, self.attribute)
            else:
                setattr(self.owner, self.attribute, earlier)


@contextmanager
def patched_torch(
    tracker: Tracker, device: torch.device, kernels: Kernels, room: Callable[[], int], *, early_release: bool = False
) -> Iterator[None]:
    """torch's part, for fake tensors on ``device``. To be entered before DeepSpeed is imported: zero.Init puts
    torch's functions back as they were at that time (deepspeed/runtime/zero/partition_parameters.py).

    Args:
        room: says by how many bytes the device's level is below its highest so far.
    """
    with ExitStack() as stack:
        patches = [_of_the_compiler(room), *_of_fake_tensors(tracker, device), _of_the_scaler(tracker.answers)]
        patches += _of_the_reducer()
        if device.type != "cpu":
            casts = autocast.Casts()
            stack.enter_context(autocast.registered(casts))
            stack.enter_context(own_kernels.registered())
            patches += [*_of_the_device(kernels, casts), *_of_the_collectives(UnderWay(early=early_release))]
        for patch in patches:
            stack.enter_context(patch.applied())
        # Else torch.optim, and torch.nn.utils' clipping, take one tensor after the other: type(p) is not Parameter.
        for module in ("torch.optim.optimizer", "torch.utils._foreach_utils"):
            foreach = importlib.import_module(module)._foreach_supported_types
            foreach.append(FakeTensor)
            stack.callback(foreach.remove, FakeTensor)
        yield


@contextmanager
def patched_deepspeed() -> Iterator[None]:
    """DeepSpeed's part, of the modules that are imported by now."""
    with ExitStack() as stack:
        for patch in _of_deepspeed():
            stack.enter_context(patch.applied())
        yield


def _of_the_compiler(room: Callable[[], int]) -> Patch:
    return Patch(
        torch,
        "compile",
        compiling(room),
        "there is nothing to compile for: fake tensors have no data; DeepSpeed compiles as it is imported "
        "(deepspeed/runtime/zero/muon/original_muon.py), which alone would load the whole of inductor",
    )


def _of_the_collectives(under_way: UnderWay) -> list[Patch]:
    def collective(name: str) -> Callable[..., Any]:
        found = getattr(torch.distributed, name)
        return gathering_flat(found) if name == "all_gather" else found

    return [
        Patch(
            torch.distributed,
            name,
            holding(collective(name), under_way),
            "torch keeps the tensors of an asynchronous collective until its wait (torch/csrc/distributed/c10d/"
            "ProcessGroupNCCL.cpp, stashed_for_allocator_safety_), and what it gathers into for a list of tensors as "
            "long as its handle (allgather); the fake backend keeps nothing. With offloaded parameters stage 3 gives "
            "collectives copies that nobody else holds (deepspeed/runtime/zero/partition_parameters.py, "
            "_all_gather_sequential), and with Muon it gathers lists (stage3.py, _muon_update_sub_group)",
        )
        for name in NAMES
    ]


def _of_fake_tensors(tracker: Tracker, device: torch.device) -> list[Patch]:
    return [
        Patch(
            torch.Tensor,
            "_make_subclass",
            staticmethod(_with_keys_of(device)),
            "torch lets `.data =` change a tensor's device between CPU and CUDA, but not between CPU and PrivateUse1 "
            "(c10/core/TensorImpl.h, has_compatible_shallow_copy_type): fake tensors of both get the same keys",
        ),
        Patch(
            FakeTensor,
            "data",
            property(_get_data, _set_data),
            "with the same keys `.data =` works, but the Python side of a fake tensor keeps its device",
        ),
        Patch(
            FakeTensor,
            "narrow",
            narrow,
            "stage 3 cuts every gathered parameter into a view for every rank (deepspeed/runtime/zero/"
            "partition_parameters.py), half a million of them on 512 ranks; a view takes no memory, and this is what "
            "the dispatch of fake tensors comes to in the end",
        ),
        Patch(
            FakeTensor,
            "__getitem__",
            get_item,
            "as narrow: stage 3 cuts every gradient into a slice for every rank (deepspeed/runtime/comm/"
            "coalesced_collectives.py, reduce_scatter_coalesced)",
        ),
        Patch(
            torch.nn.Module,
            "_apply",
            _apply,
            "torch swaps fake parameters for others (torch/nn/modules/module.py), which DeepSpeed's references forbid; "
            "this is what it does with CUDA tensors: `.data =`, one parameter after the other",
        ),
        Patch(
            FakeTensor,
            "record_stream",
            lambda tensor, stream: tracker.record_stream(tensor, stream.stream_id if isinstance(stream, Stream) else 0),
            "torch's takes torch.cuda.Stream only",
        ),
        Patch(FakeTensor, "pin_memory", _pin_memory, "fake tensors cannot be pinned (aten::_pin_memory)"),
        Patch(
            FakeTensor,
            "is_pinned",
            lambda tensor, *_: tracker.place_of(tensor) == "pinned",
            "fake tensors do not know (aten::is_pinned)",
        ),
        Patch(
            FakeTensor,
            "numpy",
            _numpy,
            "torch refuses subclasses (torch/csrc/utils/tensor_numpy.cpp); the shape of a partitioned activation is a "
            "tensor that is read so (deepspeed/runtime/activation_checkpointing/checkpointing.py)",
        ),
        Patch(
            importlib.import_module("torch._subclasses.fake_tensor"),
            "CONSTANT_NUMEL_LIMIT",
            _LONGEST_SHAPE,
            "fake tensors remember the values of one element only, and such a shape has more",
        ),
    ]


def _of_the_scaler(answers: Answers) -> Patch:
    def step(_scaler: Any, optimizer: Any, _state: Any, *args: Any, **kwargs: Any) -> Any:
        return None if answers.found_inf() else optimizer.step(*args, **kwargs)

    return Patch(
        torch.amp.GradScaler,
        "_maybe_opt_step",
        step,
        "torch asks a tensor of a floating type whether a gradient is infinite (torch/amp/grad_scaler.py), and the "
        "rule for numbers would skip every step",
    )


def _of_the_reducer() -> list[Patch]:
    reason = "torch's reducer of DDP is C++ that reads and writes tensors' memory, which fake tensors do not have"
    return [
        Patch(torch.distributed, "Reducer", Reducer, reason),
        Patch(torch.distributed, "Logger", Logger, reason),
        Patch(
            torch.distributed,
            "_verify_params_across_processes",
            _agreed,
            "compares the shapes of parameters across ranks, of which there is one",
        ),
    ]


def _of_the_device(kernels: Kernels, casts: autocast.Casts) -> list[Patch]:
    return [
        Patch(
            torch,
            "clear_autocast_cache",
            casts.clear,
            "torch clears the cache of its own kernels (aten/src/ATen/autocast_mode.cpp, clear_cache); the pretend "
            "device's casts are elsewhere",
        ),
        Patch(
            torch,
            "tensor",
            _tensor_through_host(torch.tensor),
            "torch.tensor builds its result below the dispatcher (torch/csrc/utils/tensor_new.cpp), where the pretend "
            "device has no kernels",
        ),
        Patch(
            FakeTensor,
            "__setitem__",
            _set_item,
            "torch makes the index tensor of a range below the dispatcher (torch/csrc/autograd/python_variable_"
            "indexing.cpp, sequenceToVariable); DeepSpeed touches the pages of a checkpoint buffer so",
        ),
        Patch(
            torch._meta_registrations,
            "_meta_grouped_mm_common",
            grouped_product,
            "torch's shape function takes bf16 only; CUDA's kernel multiplies other types group by group, into the "
            "same result (aten/src/ATen/native/cuda/GroupedBlas.cpp, _grouped_mm_cuda; native/GroupedMMUtils.h, "
            "_grouped_mm_fallback)",
        ),
        Patch(
            torch.nn.functional,
            "scaled_dot_product_attention",
            fused_attention(kernels, casts),
            "torch chooses the kernel by the type of the device, and none but math for the pretend one "
            "(aten/src/ATen/native/transformers/attention.cpp, _fused_sdp_choice)",
        ),
        Patch(
            torch.nn.functional,
            "softmax",
            half_to_float(torch.nn.functional.softmax),
            "torch copies fp16 into fp32 first on every device but CUDA (aten/src/ATen/native/SoftMax.cpp, softmax)",
        ),
    ]


def _of_deepspeed() -> list[Patch]:
    from deepspeed.ops.op_builder.builder import OpBuilder

    agreed = "asserts that all ranks see the same numbers, which a group of one process cannot tell"
    agreeing = [
        Patch(module, name, _agreed, agreed)
        for module in [module for key, module in list(sys.modules.items()) if key.startswith("deepspeed.")]
        for name in ("assert_ints_same_as_other_ranks", "assert_lst_len_same_as_other_ranks")
        if name in vars(module)
    ]
    return [
        Patch(
            OpBuilder,
            "load",
            lambda builder, verbose=True: NativeOperator(builder.name),  # noqa: ARG005
            "native operators compute on memory that fake tensors do not have, and need a compiler",
        ),
        *agreeing,
    ]


def _with_keys_of(device: torch.device) -> Callable[..., Any]:
    make_subclass = torch.Tensor._make_subclass

    def make(
        cls: type,
        data: torch.Tensor,
        requires_grad: bool = False,
        **kwargs: Any,  # as torch/_dynamo/polyfills/tensor.py has it, which compares signatures
    ) -> Any:
        if kwargs.get("device_for_backend_keys") is not None:
            kwargs["device_for_backend_keys"] = device
        return make_subclass(cls, data, requires_grad, **kwargs)

    return make


_data: Any = torch._C.TensorBase.data  # the descriptor of C++


def _get_data(tensor: Any) -> Any:
    return _data.__get__(tensor)


def _set_data(tensor: Any, value: Any) -> None:
    _data.__set__(tensor, value)
    if isinstance(value, FakeTensor):
        tensor.fake_device = value.fake_device
        tensor.constant = None


def _apply(module: Any, function: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
    if recurse:
        for child in module.children():
            child._apply(function)
    for parameter in module._parameters.values():
        if parameter is None:
            continue
        with torch.no_grad():
            applied = function(parameter)
        parameter.data = applied
        del applied
        if parameter.grad is not None:
            with torch.no_grad():
                parameter.grad.data = function(parameter.grad)
    for key, buffer in module._buffers.items():
        if buffer is not None:
            module._buffers[key] = function(buffer)
    return module


def _tensor_through_host(make_tensor: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def tensor(
        data: Any, *, dtype: Any = None, device: Any = None, requires_grad: bool = False, pin_memory: bool = False
    ) -> torch.Tensor:
        made = make_tensor(data, dtype=dtype, device="cpu")
        if device is not None and torch.device(device).type != "cpu":
            made = torch.empty(made.shape, dtype=made.dtype, device=device)
        elif pin_memory:
            made = made.pin_memory()
        return made.requires_grad_() if requires_grad else made

    return tensor


def _numpy(tensor: Any) -> Any:
    if tensor.constant is None:
        raise NotImplementedError("the dry run does not cover numpy() of a tensor whose values are not known")
    with no_dispatch():
        return tensor.constant.numpy()


def _set_item(tensor: Any, index: Any, value: Any) -> None:
    if isinstance(index, range):
        index = torch.tensor(list(index), device=tensor.device)
    torch.Tensor.__setitem__(tensor, index, value)


def _pin_memory(tensor: Any, *_: Any) -> Any:
    return torch.empty_like(tensor, pin_memory=True)


def _agreed(*_: Any, **__: Any) -> None:
    """All ranks agree."""
