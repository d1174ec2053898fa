"""Operators: what each torch operator allocates, saves and frees, forward and backward.

One function per operator or fused module. What is saved follows torch's derivatives.yaml
(tools/autograd/derivatives.yaml, packaged as torchgen/packaged/autograd); the order of allocations
within a backward follows the generated functions. Every function reads its input and leaves it to
the program to drop it.
"""

from __future__ import annotations

from dsplan.embeddings import embedding_backward_workspaces
from dsplan.ledger import Term
from dsplan.reductions import column_sum_workspace
from dsplan.tape import PRODUCT, Storage, Tape, Tensor

PARAMETER_GRADIENT = Term("parameter gradients in flight", "e·n", "torch autograd AccumulateGrad: one per parameter")
BACKWARD = Term(
    "gradients of activations (working)", "a few times the largest activation", "torch autograd, backward kernels"
)
RESIDUAL_MASK = Term("residual dropout masks", "b·s·h each", "aten native_dropout, bool; the CPU keeps e·b·s·h")
WORKSPACE = Term(
    "workspaces of backward kernels",
    "a bias' sum: 4 · width · blocks · threads; softmax: e·b·a·s²; embedding: 4·h·(1.1·b·s)",
    "aten/src/ATen/native/cuda: Reduce.cuh, SoftMax.cu, EmbeddingBackwardKernel.cu",
)
WORKING = Term("working tensors of the forward pass", "freed when their operator ends", "torch operators")


def linear(  # an operator's natural argument order
    t: Tape,
    x: Tensor,
    size: int,
    term: Term,
    name: str,
    weight_bytes: int,
    bias_bytes: int,
    *,
    element_bytes: int,
    tied: bool = False,
) -> Tensor:
    """``F.linear``: saves the input (derivatives.yaml addmm, mm). ``bias_bytes`` 0 means no bias.

    Backward allocates the input's gradient, the weight's and the bias's, as stage 3's own linear layer always does;
    without a bias torch runs ``mm``, whose generated backward makes the weight's first. The gradient of a ``tied``
    weight waits for the other use of the weight, which hands both over.
    """
    kept = t.save(x)
    out = t.tensor(size, term)

    def backward(gradient: Storage) -> None:
        if bias_bytes:
            dx = t.allocate(x.storage.size, BACKWARD)
            t.allocate(weight_bytes, PARAMETER_GRADIENT)
            if t.recomputed and not t.kernels.zero3_linear:
                t.forget(kept)  # the bias' sum comes after addmm's own function (engine.cpp validate_outputs)
            bias_gradient(t, size // bias_bytes, bias_bytes // element_bytes, element_bytes)
        elif t.kernels.zero3_linear:
            dx = t.allocate(x.storage.size, BACKWARD)
            t.mark(PRODUCT, name)
            t.allocate(weight_bytes, PARAMETER_GRADIENT)
        else:
            t.allocate(weight_bytes, PARAMETER_GRADIENT)
            t.mark(PRODUCT, name)
            dx = t.allocate(x.storage.size, BACKWARD)
        # Samples and tokens are one dimension of the product, and the gradient of that view is a view again.
        dx.is_view = not t.kernels.zero3_linear
        t.release(gradient)
        t.forget(kept)
        # Handed over in the order of the function's inputs: addmm's are (bias, input, weight), those of stage 3's own
        # linear function (input, weight, bias).
        parameters = ([] if tied else ["weight"]) + (["bias"] if bias_bytes else [])
        # The input's meets those of its other uses before that, where no bias is added: of input.matmul(weight.t())
        # the input's view is a later node than the weight's transpose, and runs first (ATen/native/Linear.cpp, linear;
        # with a bias the view comes first, _flatten_nd_linear). At stage 3 a hook is in between (PostBackwardFunction).
        gives_first = not bias_bytes and not t.kernels.zero3_linear
        if gives_first:
            t.give(x, dx)
        for parameter in parameters if t.kernels.zero3_linear else reversed(parameters):
            t.parameter_gradient(f"{name}.{parameter}")
        if not gives_first:
            t.give(x, dx)

    return t.node(out, backward)


def bias_gradient(
    t: Tape, rows: int, columns: int, element_bytes: int, *, term: Term = PARAMETER_GRADIENT, wide: bool = False
) -> Storage:
    """A bias' gradient: the sum over the rows of a matrix of ``element_bytes``; ``wide``: the sum is fp32."""
    found = t.allocate((4 if wide else element_bytes) * columns, term)
    device = t.kernels.multiprocessors
    workspace = column_sum_workspace(rows, columns, device, element_bytes=element_bytes) if device else None
    t.temporaries(workspace or (), WORKSPACE)
    return found


def softmax_gradient(t: Tape, size: int, product: int | None = None) -> Storage:
    """``aten::_softmax_backward_data``, which makes the product of gradient and output (SoftMax.cu,
    softmax_backward_cuda_out): of ``product`` bytes where the probabilities are wider than the gradient.
    """
    found = t.allocate(size, BACKWARD)
    if not t.kernels.one_pool:
        t.temporary(product or size, WORKSPACE)
    return found


def embedding_gradient(t: Tape, num_indices: int, num_rows: int, width: int, element_bytes: int) -> Storage:
    """``aten::embedding_dense_backward``: the whole table's gradient."""
    found = t.allocate(element_bytes * num_rows * width, PARAMETER_GRADIENT)
    if not t.kernels.one_pool:
        t.temporaries(embedding_backward_workspaces(num_indices, num_rows, width), WORKSPACE)
    return found


def layer_norm(t: Tape, x: Tensor, term: Term, name: str, statistics_bytes: int, weight_bytes: int | None) -> Tensor:
    """``aten::native_layer_norm``: saves its input, the mean and 1/std of every token.

    Args:
        statistics_bytes: of the means, and of the 1/std.
        weight_bytes: of the weight, and of the bias; None where they are not trained: they get no gradient.
    """
    kept = t.save(x)
    out = t.tensor(x.storage.size, term)
    statistics = [t.tensor(statistics_bytes, LAYER_NORM_STATISTICS) for _ in range(2)]
    saved = [t.save(statistic) for statistic in statistics]
    t.drop(*statistics)

    def backward(gradient: Storage) -> None:
        dx = t.allocate(x.storage.size, BACKWARD)
        if weight_bytes is not None:
            t.allocate(weight_bytes, PARAMETER_GRADIENT)
            t.allocate(weight_bytes, PARAMETER_GRADIENT)
        t.release(gradient)
        t.forget(kept, *saved)
        # The input's gradient is added where it goes before the parameters' nodes run (engine.cpp, evaluate_function).
        t.give(x, dx)
        if weight_bytes is not None:
            t.parameter_gradient(f"{name}.weight")
            t.parameter_gradient(f"{name}.bias")

    return t.node(out, backward)


LAYER_NORM_STATISTICS = Term(
    "layer norm statistics", "2 · 4·b·s per layer norm", "aten native_layer_norm: mean and rstd, fp32 on CUDA"
)


def dropout(
    t: Tape, x: Tensor, numel: int, element_bytes: int, probability: float, mask_term: Term, *, term: Term = WORKING
) -> Tensor:
    """``F.dropout`` in training: nothing at probability 0, else a mask kept for backward and an output (``term``).

    In that order, though the kernel returns them the other way round (aten/src/ATen/native/cuda/Dropout.cu,
    dropout_cuda; native/Dropout.cpp, _dropout_impl).
    """
    if probability == 0.0:
        return t.node(t.view(x.storage), lambda gradient: t.give(x, gradient))
    mask = t.tensor(numel if t.kernels.fused_dropout else numel * element_bytes, mask_term)
    if t.kernels.fused_dropout:  # one operator, which saves what it returns
        out = t.tensor(x.storage.size, term)
        kept = t.save(mask)
    else:  # a product, which saves what it is given
        kept = t.save(mask)
        out = t.tensor(x.storage.size, term)
    t.drop(mask)

    def backward(gradient: Storage) -> None:
        dx = t.allocate(x.storage.size, BACKWARD)
        t.release(gradient)
        t.forget(kept)
        t.give(x, dx)

    return t.node(out, backward)


def add(t: Tape, x: Tensor, y: Tensor, term: Term) -> Tensor:
    """``x + y`` of one shape: saves nothing; both inputs get the same gradient tensor."""
    out = t.tensor(x.storage.size, term)

    def backward(gradient: Storage) -> None:
        t.give(x, t.hold(gradient))
        t.give(y, gradient)

    return t.node(out, backward)


def activation(t: Tape, x: Tensor, term: Term) -> Tensor:
    """``F.gelu`` or ``F.silu``, one kernel: saves its input."""
    kept = t.save(x)
    out = t.tensor(x.storage.size, term)

    def backward(gradient: Storage) -> None:
        dx = t.allocate(x.storage.size, BACKWARD)
        t.release(gradient)
        t.forget(kept)
        t.give(x, dx)

    return t.node(out, backward)


def gelu_new(t: Tape, x: Tensor, term: Term) -> Tensor:
    """minGPT's NewGELU, ``0.5·x·(1 + tanh(√(2/π)·(x + 0.044715·x³)))``, as elementary operators.

    Saves x (pow), tanh's result, and both factors of the product: four tensors of the input's size
    beside the output. Backward is written out as autograd runs it.
    """
    size = x.storage.size
    half = t.tensor(size, term)
    kept_x = t.save(x)
    cube = t.tensor(size, WORKING)
    scaled = t.tensor(size, WORKING)
    t.drop(cube)
    inner = t.tensor(size, WORKING)
    t.drop(scaled)
    argument = t.tensor(size, WORKING)
    t.drop(inner)
    tanh = t.tensor(size, term)
    kept_tanh = t.save(tanh)
    t.drop(argument)
    one_plus = t.tensor(size, term)
    t.drop(tanh)
    kept_half, kept_one_plus = t.save(half), t.save(one_plus)
    out = t.tensor(size, term)
    t.drop(half, one_plus)

    def backward(gradient: Storage) -> None:
        d_tanh = t.allocate(size, BACKWARD)  # MulBackward0 takes the second factor's gradient first
        d_half = t.allocate(size, BACKWARD)
        t.release(gradient)
        t.forget(kept_one_plus, kept_half)
        d_argument = t.allocate(size, BACKWARD)
        t.release(d_tanh)
        t.forget(kept_tanh)
        d_inner = t.allocate(size, BACKWARD)  # gradient of x + 0.044715·x³, also the first gradient of x
        t.release(d_argument)
        d_scaled = t.allocate(size, BACKWARD)
        square = t.allocate(size, BACKWARD)
        three = t.allocate(size, BACKWARD)
        d_cube = t.allocate(size, BACKWARD)
        t.release(three)
        t.release(square)
        t.release(d_scaled)
        t.forget(kept_x)
        t.give(x, d_inner)
        t.give(x, d_cube)
        d_x = t.allocate(size, BACKWARD)
        t.release(d_half)
        t.give(x, d_x)

    return t.node(out, backward)


def cross_entropy(t: Tape, logits: Tensor, element_bytes: int, term: Term, scalar: Term) -> Tensor:
    """``F.cross_entropy``: log-softmax in the logits' type is saved; nll_loss keeps scalars."""
    log_probabilities = t.tensor(logits.storage.size, term)
    kept = t.save(log_probabilities)
    loss = t.tensor(element_bytes, scalar)
    weight = t.tensor(element_bytes, scalar)
    kept_weight = t.save(weight)
    t.drop(weight, log_probabilities)

    def backward(gradient: Storage) -> None:
        d_log = t.allocate(logits.storage.size, BACKWARD)
        t.release(gradient)
        t.forget(kept_weight)
        d_logits = t.allocate(logits.storage.size, BACKWARD)
        t.release(d_log)
        t.forget(kept)
        t.give(logits, d_logits)

    return t.node(loss, backward)
