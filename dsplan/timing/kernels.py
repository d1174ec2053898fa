"""Seconds that the device computes, piece by piece of the model: every kernel of a pass with its size.

Legend: b ``micro_batch_size``, s ``sequence_length``, h ``hidden_size``, a attention heads, d head width,
V ``vocab_size``; n = b·s·h elements of the residual stream, S = b·a·s² scores. The lists follow ``mingpt/model.py``
and torch's derivatives (tools/autograd/derivatives.yaml).
"""

from __future__ import annotations

from dataclasses import dataclass

from dsplan.errors import InputError
from dsplan.model import ModelShape
from dsplan.timing.profile import Profile
from dsplan.workload import Workload

#: Stage 3 puts a linear layer of DeepSpeed's in the place of torch's, whose bias is an operator of its own
#: (deepspeed/runtime/zero/linear.py, LinearFunctionForZeroStage3).
STAGE_OF_OWN_LINEAR = 3

#: gelu_new, ``0.5·x·(1 + tanh(√(2/π)·(x + 0.044715·x³)))``: kernels of forward and backward over 4·b·s·h elements.
_GELU_NEW_FORWARD = {"scale": 4, "pow": 1, "add": 2, "tanh": 1}
_GELU_NEW_BACKWARD = {"add": 3, "tanh_backward": 1, "scale": 5, "add_": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Seconds of a piece of the model on the device: matrix products and attention apart from what memory limits."""

    forward_products: float = 0.0
    forward_memory: float = 0.0
    backward_products: float = 0.0
    backward_memory: float = 0.0

    @property
    def forward(self) -> float:
        return self.forward_products + self.forward_memory

    @property
    def backward(self) -> float:
        return self.backward_products + self.backward_memory


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernels:
    """Seconds of the three pieces: embedding, one block, head and loss; of one micro batch, without recomputation."""

    embedding: Piece
    block: Piece
    head: Piece


def kernels(profile: Profile, model: ModelShape, workload: Workload, *, own_linear: bool) -> Kernels:
    """The kernels of one micro batch.

    Args:
        profile: the machine.
        model: a minGPT, or a dense decoder of transformers'.
        workload: micro batch, sequence and precision count; checkpointing does not.
        own_linear: DeepSpeed's linear layers, as stage 3 has them.

    Raises:
        InputError: a model whose parts have no times (a mixture of experts).
    """
    pieces = _Pieces(profile, model, workload, own_linear)
    return Kernels(embedding=pieces.embedding(), block=pieces.block(), head=pieces.head())


class _Sum:
    """Seconds by kind of work, forward and backward."""

    def __init__(self) -> None:
        self.seconds = [0.0, 0.0, 0.0, 0.0]

    def piece(self) -> Piece:
        forward_products, forward_memory, backward_products, backward_memory = self.seconds
        return Piece(
            forward_products=forward_products,
            forward_memory=forward_memory,
            backward_products=backward_products,
            backward_memory=backward_memory,
        )


class _Pieces:
    def __init__(self, profile: Profile, model: ModelShape, workload: Workload, own_linear: bool) -> None:
        self.profile, self.model, self.own_linear = profile, model, own_linear
        self.dtype = workload.precision
        self.b, self.s = workload.micro_batch_size, workload.sequence_length
        self.tokens = self.b * self.s
        self.h, self.a, self.d = model.hidden_size, model.num_attention_heads, model.head_width
        self.n = self.tokens * self.h
        self.dropout = model.dropout > 0

    def embedding(self) -> Piece:
        found = _Sum()
        self._memory(found, 0, "embedding", self.n, 2)
        self._memory(found, 0, "add", self.n)
        if self.dropout:
            self._memory(found, 0, "dropout", self.n)
            self._memory(found, 1, "dropout_backward", self.n)
        self._memory(found, 1, "embedding_backward", self.n)
        table = self.h * (self.model.vocab_size + self.model.max_position_embeddings)
        self._memory(found, 1, "zero_", table)
        return found.piece()

    def head(self) -> Piece:
        found = _Sum()
        self._norm(found)
        self._linear(found, self.h, self.model.vocab_size, bias=False)
        logits = self.tokens * self.model.vocab_size
        self._memory(found, 0, "log_softmax", logits)
        self._memory(found, 1, "nll_loss_backward", logits)
        self._memory(found, 1, "log_softmax_backward", logits)
        return found.piece()

    def block(self) -> Piece:
        found = _Sum()
        matrices = self._matrices()
        for _ in range(2):
            self._norm(found)
            self._memory(found, 0, "add", self.n)  # the residual
            self._memory(found, 1, "add_", self.n)  # its second gradient
        for outputs, inputs, bias in matrices:
            self._linear(found, inputs, outputs, bias=bias)
        self._attention(found)
        self._activation(found)
        if self.dropout:
            self._memory(found, 0, "dropout", self.n, 2)
            self._memory(found, 1, "dropout_backward", self.n, 2)
        return found.piece()

    def _matrices(self) -> list[tuple[int, int, bool]]:
        """(outputs, inputs, bias) of the linear layers of a block, from its parameters."""
        parameters = {parameter.name: parameter.shape for parameter in self.model.block_parameters}
        found = []
        for name, shape in parameters.items():
            if len(shape) > 2:
                raise InputError(f"step time: {name} of shape {shape} is no linear layer; experts are not covered yet")
            if len(shape) == 2:
                found.append((shape[0], shape[1], f"{name.removesuffix('.weight')}.bias" in parameters))
        return found

    def _linear(self, found: _Sum, inputs: int, outputs: int, *, bias: bool) -> None:
        forward, grad_input, grad_weight = self.profile.linear(self.dtype, self.tokens, inputs, outputs)
        found.seconds[0] += forward
        found.seconds[2] += grad_input + grad_weight
        if bias:
            self._memory(found, 1, "column_sum", self.tokens * outputs)
            if self.own_linear:
                self._memory(found, 0, "add_", self.tokens * outputs)

    def _norm(self, found: _Sum) -> None:
        self._memory(found, 0, "layer_norm", self.n)
        self._memory(found, 1, "layer_norm_backward", self.n)

    def _attention(self, found: _Sum) -> None:
        heads, inner = self.b * self.a, self.tokens * self.a * self.d
        if self.model.attention != "eager":
            forward, backward = self.profile.fused_attention(self.dtype, heads, self.s, self.d, self.dropout)
            found.seconds[0] += forward
            found.seconds[2] += backward
            self._memory(found, 1, "copy", 3 * inner)  # the gradients of q, k and v become one
            return
        scores = heads * self.s**2
        score_product, value_product, transposed = self.profile.products(self.dtype, heads, self.s, self.d)
        found.seconds[0] += score_product + value_product
        found.seconds[2] += score_product + value_product + 2 * transposed
        self._memory(found, 0, "copy", inner, 3)  # q and k for the product, the context for c_proj
        for operator in ("scale", "masked_fill", "softmax"):
            self._memory(found, 0, operator, scores)
        for operator in ("softmax_backward", "masked_fill", "scale"):
            self._memory(found, 1, operator, scores)
        if self.dropout:
            self._memory(found, 0, "dropout", scores)
            self._memory(found, 1, "dropout_backward", scores)
        self._memory(found, 1, "copy", 3 * inner)
        self._memory(found, 1, "copy", inner)

    def _activation(self, found: _Sum) -> None:
        elements = self.tokens * self.model.mlp_width
        if self.model.activation == "gelu_new" and not self.model.gated_mlp:
            for operator, times in _GELU_NEW_FORWARD.items():
                self._memory(found, 0, operator, elements, times)
            for operator, times in _GELU_NEW_BACKWARD.items():
                self._memory(found, 1, operator, elements, times)
            return
        self._memory(found, 0, "gelu", elements)
        self._memory(found, 1, "gelu_backward", elements)
        if self.model.gated_mlp:
            self._memory(found, 0, "add", elements)
            self._memory(found, 1, "add", elements, 2)

    def _memory(self, found: _Sum, backward: int, operator: str, elements: int, times: int = 1) -> None:
        found.seconds[1 + 2 * backward] += times * self.profile.elementwise(operator, self.dtype, elements)
