"""Device memory that kernels take by themselves: no dispatch mode sees it, so it is told here, operator by operator."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from dsplan.efficient_attention import FLOAT_BYTES, efficient_backward_workspaces
from dsplan.embeddings import embedding_backward_workspaces
from dsplan.kernels import Kernels
from dsplan.reductions import VECTOR, reduction_workspaces
from runner.device.fake.memory import DEVICE, PAGEABLE

aten = torch.ops.aten

#: Matrix products: the first on each thread takes a workspace for good (aten/src/ATen/cuda/CublasHandlePool.cpp).
MATRIX_PRODUCTS = frozenset({aten.mm.default, aten.addmm.default, aten.bmm.default, aten.baddbmm.default})

#: (place, bytes) of what a kernel takes beside its results.
Transients = list[tuple[str, int]]
Rule = Callable[[tuple[Any, ...], dict[str, Any], Any], Transients]
#: The same of a kernel that runs in parts, one after the other.
Parts = Callable[[tuple[Any, ...], dict[str, Any], Any, Kernels], Iterator[Transients]]
HALF_BYTES = 2
#: Elements that a block of threads takes of a list of tensors.
NORM_CHUNK = 65_536


def transients(
    function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any, kernels: Kernels
) -> Iterator[Transients]:
    """What the kernel of ``function`` takes beside its results and gives back when it ends: of each part that it runs
    one after the other, what it takes at once."""
    parts = _PARTS.get(function)
    for part in () if parts is None else parts(args, kwargs, result, kernels):
        yield [(place, size) for place, size in part if size > 0]


class Workspaces:
    """The matrix libraries' workspaces: for good, one for each thread (the caller's and autograd's) and stream."""

    def __init__(self, kernels: Kernels) -> None:
        self.kernels = kernels
        self._have: set[tuple[str, bool, int]] = set()

    def wanted(self, function: Any, args: tuple[Any, ...], stream: int) -> list[int]:
        """Bytes that a matrix product takes in this order, where it is the first of its library, thread and stream."""
        if function not in MATRIX_PRODUCTS:
            return []
        libraries = [("blas", self.kernels.workspace_bytes)]
        if function is aten.addmm.default and args[0].dim() == 1:
            # A product with a bias goes to cublasLt (aten/src/ATen/native/cuda/Blas.cpp, addmm_out_cuda_impl), whose
            # handle is cuBLAS's own, workspace and all (CublasHandlePool.cpp, getCurrentCUDABlasLtHandle).
            libraries.append(("lt", self.kernels.lt_workspace_bytes))
        sizes = []
        for library, size in libraries:
            key = (library, in_backward(), stream)
            if size and key not in self._have:
                self._have.add(key)
                sizes.append(size)
        return sizes


def in_backward() -> bool:
    """Whether autograd is running a graph: on CUDA, a thread of its own would be."""
    return bool(torch._C._current_graph_task_id() != -1)


def _copied(args: tuple[Any, ...], _kwargs: dict[str, Any], _result: Any) -> Transients:
    return _cast(args[1], args[0])


def _moved(args: tuple[Any, ...], _kwargs: dict[str, Any], result: Any) -> Transients:
    return _cast(args[0], result)


def _cast(source: torch.Tensor, target: torch.Tensor) -> Transients:
    # aten/src/ATen/native/cuda/Copy.cu, copy_kernel_cuda: a copy between host and device that changes the type
    # goes through a tensor on the host, of the type that is on the device.
    if source.device == target.device or source.dtype == target.dtype:
        return []
    on_device = target if source.device.type == "cpu" else source
    return [(PAGEABLE, source.numel() * on_device.element_size())]


def _is_inf(args: tuple[Any, ...], _kwargs: dict[str, Any], _result: Any) -> Transients:
    # aten/src/ATen/native/TensorCompare.cpp, isinf: abs() == inf
    place = PAGEABLE if args[0].device.type == "cpu" else DEVICE
    return [(place, args[0].numel() * args[0].element_size())]


def _flash_backward(args: tuple[Any, ...], _kwargs: dict[str, Any], _result: Any) -> Transients:
    # aten/src/ATen/native/transformers/cuda/flash_attn/flash_api.cpp, mha_bwd: dq is summed in fp32, in rows
    # rounded up to 128 and a head size rounded up to 32; softmax_d likewise. The gradients of grouped keys and values
    # are made for every head of the queries (dk_expanded, dv_expanded), and then added up.
    query, key = args[1], args[2]
    batch, heads, length, size = query.shape
    rows = batch * heads * (-(-length // 128) * 128)
    found = [(DEVICE, 4 * rows), (DEVICE, 4 * rows * (-(-size // 32) * 32))]
    if key.shape[1] != heads:
        found += [(DEVICE, key.element_size() * batch * key.shape[2] * heads * size)] * 2
    return found


def _softmax_backward(args: tuple[Any, ...], _kwargs: dict[str, Any], _result: Any) -> Transients:
    # aten/src/ATen/native/cuda/SoftMax.cu, softmax_backward_cuda_out: the product of gradient and output
    return [(DEVICE, args[0].numel() * max(args[0].element_size(), args[1].element_size()))]


def _embedding_backward(args: tuple[Any, ...], _kwargs: dict[str, Any], _result: Any) -> Transients:
    gradient, indices, num_rows = args[:3]
    sizes = embedding_backward_workspaces(indices.numel(), num_rows, gradient.shape[-1])
    return [(DEVICE, size) for size in sizes]


def _foreach_norm(args: tuple[Any, ...], _kwargs: dict[str, Any], _result: Any) -> Transients:
    # aten/src/ATen/native/cuda/ForeachReduceOp.cu, foreach_tensor_norm_cuda: the parts of every tensor, as many for
    # each as the largest has chunks (MultiTensorApply.cuh, kChunkSize); in fp32
    tensors = args[0]
    chunks = -(-max(tensor.numel() for tensor in tensors) // NORM_CHUNK)
    return [(DEVICE, FLOAT_BYTES * len(tensors) * chunks)]


def _efficient_backward(
    args: tuple[Any, ...], _kwargs: dict[str, Any], _result: Any, _kernels: Kernels
) -> Iterator[Transients]:
    if args[1].element_size() == FLOAT_BYTES:
        for part in efficient_backward_workspaces(*args[1].shape):
            yield [(DEVICE, size) for size in part]


def _at_once(rule: Rule) -> Parts:
    return lambda args, kwargs, result, _: iter((rule(args, kwargs, result),))


def _reducing(*, dimensions_at: int = 1, vector_of_halves: int = VECTOR) -> Parts:
    """aten/src/ATen/native/cuda/Reduce.cuh: the parts that blocks of threads leave to one another.

    Args:
        dimensions_at: position of the dimensions among the arguments.
        vector_of_halves: values of half precision that a thread loads at once.
    """

    def parts(args: tuple[Any, ...], kwargs: dict[str, Any], result: Any, kernels: Kernels) -> Iterator[Transients]:
        x, device = args[0], kernels.multiprocessors
        if device is None or x.device.type == "cpu" or not x.numel():
            return
        given = args[dimensions_at] if len(args) > dimensions_at else kwargs.get("dim")
        dimensions = range(x.dim()) if given is None or given == [] else [given] if isinstance(given, int) else given
        size = result.element_size() if result.element_size() > x.element_size() >= FLOAT_BYTES else x.element_size()
        found = reduction_workspaces(
            tuple(x.shape),
            x.stride(),
            [dimension % x.dim() for dimension in dimensions] if x.dim() else [],
            device,
            element_bytes=size,
            accumulator_bytes=1 if result.dtype is torch.bool else max(size, FLOAT_BYTES),
            input_vector=vector_of_halves if size == HALF_BYTES else VECTOR,
        )
        for each in found:
            yield [(DEVICE, each.buffer_bytes), (DEVICE, each.semaphore_bytes)]

    return parts


_SUM = _reducing(vector_of_halves=8)  # ReduceSumProdKernel.cu, sum_functor
_PARTS: dict[Any, Parts] = {
    aten.copy_.default: _at_once(_copied),
    aten._to_copy.default: _at_once(_moved),
    aten.isinf.default: _at_once(_is_inf),
    aten._scaled_dot_product_flash_attention_backward.default: _at_once(_flash_backward),
    aten._scaled_dot_product_efficient_attention_backward.default: _efficient_backward,
    aten._softmax_backward_data.default: _at_once(_softmax_backward),
    aten.embedding_dense_backward.default: _at_once(_embedding_backward),
    aten._foreach_norm.Scalar: _at_once(_foreach_norm),
    aten.sum.default: _SUM,
    aten.sum.dim_IntList: _SUM,
    aten.mean.default: _reducing(),
    aten.mean.dim: _reducing(),
    aten.linalg_vector_norm.default: _reducing(dimensions_at=2),  # after its order
    aten.any.default: _reducing(),
    aten.any.dim: _reducing(),
    aten.all.default: _reducing(),
}

#: Operators of which there is something to say here.
HIDDEN = frozenset({*MATRIX_PRODUCTS, *_PARTS})
