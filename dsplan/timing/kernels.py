"""Seconds that the device computes, piece by piece of the model: every kernel of a pass with its size.

Legend: b ``micro_batch_size``, s ``sequence_length``, h ``hidden_size``, a attention heads, d head width,
V ``vocab_size``; n = b·s·h elements of the residual stream, S = b·a·s² scores. The lists follow ``mingpt/model.py``
and torch's derivatives (tools/autograd/derivatives.yaml).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from dsplan.errors import InputError
from dsplan.families import Parameter
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
    """Seconds of a piece of the model on the device: matrix products and attention apart from what memory limits.

    ``last_products``, ``last_memory``: what the forward pass computes after the last tensor that it saves for backward,
    and torch's checkpoint does not compute again (torch/utils/checkpoint.py, ``early_stop``).
    """

    forward_products: float = 0.0
    forward_memory: float = 0.0
    backward_products: float = 0.0
    backward_memory: float = 0.0
    last_products: float = 0.0
    last_memory: float = 0.0

    @property
    def forward(self) -> float:
        return self.forward_products + self.forward_memory

    @property
    def backward(self) -> float:
        return self.backward_products + self.backward_memory

    def recomputed(self, checkpointing: str) -> tuple[float, float]:
        """Seconds of products and of the rest that the backward pass computes again, by kind of checkpointing."""
        if checkpointing == "none":
            return 0.0, 0.0
        if checkpointing == "torch":
            return self.forward_products - self.last_products, self.forward_memory - self.last_memory
        return self.forward_products, self.forward_memory  # DeepSpeed's is reentrant: all of it


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
        model: a minGPT, or a decoder of transformers'.
        workload: micro batch, sequence and precision count; checkpointing does not.
        own_linear: DeepSpeed's linear layers, as stage 3 has them.

    Raises:
        InputError: a model whose parts have no times.
    """
    pieces = _Pieces(profile, model, workload, own_linear)
    return Kernels(embedding=pieces.embedding(), block=pieces.block(), head=pieces.head())


class _Sum:
    """Seconds by kind of work, forward and backward."""

    def __init__(self) -> None:
        self.seconds = [0.0, 0.0, 0.0, 0.0]
        self.last = [0.0, 0.0]

    def add(self, other: _Sum, times: float) -> None:
        self.seconds = [one + times * more for one, more in zip(self.seconds, other.seconds, strict=True)]
        self.last = [one + times * more for one, more in zip(self.last, other.last, strict=True)]

    def piece(self) -> Piece:
        forward_products, forward_memory, backward_products, backward_memory = self.seconds
        return Piece(
            forward_products=forward_products,
            forward_memory=forward_memory,
            backward_products=backward_products,
            backward_memory=backward_memory,
            last_products=self.last[0],
            last_memory=self.last[1],
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
        # A row added to every row, which torch's vectorized kernels do not do; older profiles lack it.
        self.bias = "add_bias" if profile.has_operator("add_bias", self.dtype) else "add_"

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
        """The mean of all blocks, which differ where the first ones are dense and the others mixtures of experts."""
        found = _Sum()
        kinds = Counter(self.model.decoder.layers) if self.model.decoder is not None else {0: 1}
        for kind, times in kinds.items():
            parameters = self.model.block_parameters
            if self.model.decoder is not None:
                parameters = self.model.decoder.kinds[kind] or parameters
            one = _Sum()
            self._block(one, parameters)
            found.add(one, times / sum(kinds.values()))
        return found.piece()

    def _block(self, found: _Sum, parameters: Sequence[Parameter]) -> None:
        for _ in range(2):
            self._norm(found)
            self._memory(found, 0, "add", self.n)  # the residual
            self._memory(found, 1, "add_", self.n)  # its second gradient
        names = {parameter.name for parameter in parameters}
        routed = 0  # rows of the experts
        for parameter in parameters:
            shape = parameter.shape
            if len(shape) == 2:
                bias = f"{parameter.name.removesuffix('.weight')}.bias" in names
                self._linear(found, shape[1], shape[0], bias=bias, trained=parameter.trained)
            elif len(shape) == 3:
                routed = self._experts(found, *shape)
        self._attention(found)
        if routed:
            self._routing(found, routed)
            self._activation(found, routed * self._expert_width())
        else:
            self._activation(found, self.tokens * self.model.mlp_width)
        if self.dropout:
            self._memory(found, 0, "dropout", self.n, 2)
            self._memory(found, 1, "dropout_backward", self.n, 2)
        self._after_the_last_saved(found, parameters, routed)

    def _after_the_last_saved(self, found: _Sum, parameters: Sequence[Parameter], routed: int) -> None:
        """The residual, and before it the last linear layer where nothing after it saves.

        torch's linear saves its input before it multiplies, DeepSpeed's own (an autograd.Function) when it has
        multiplied, and dropout its mask when it has drawn it.
        """
        found.last[1] += self.profile.elementwise("add", self.dtype, self.n)
        matrices = [parameter.shape for parameter in parameters if len(parameter.shape) == 2]
        if matrices and not (self.dropout or self.own_linear or routed):
            outputs, inputs = matrices[-1]
            found.last[0] += self.profile.linear(self.dtype, self.tokens, inputs, outputs)[0]

    def _experts(self, found: _Sum, count: int, outputs: int, inputs: int) -> int:
        """The grouped product of all experts; the rows that it has, k for each token.

        As torch._grouped_mm (transformers integrations/moe.py, grouped_mm_experts_forward): one product of all rows,
        that reads every expert's weights once, however few rows there are for it; the gradient of the weights is
        written once. A copy reads and writes as much twice.
        """
        decoder = self.model.decoder
        if decoder is None or decoder.experts is None:
            raise InputError(f"step time: a parameter of shape {(count, outputs, inputs)} is no linear layer")
        rows = self.tokens * decoder.experts.per_token
        forward, grad_input, grad_weight = self.profile.linear(self.dtype, rows, inputs, outputs)
        weights = self.profile.elementwise("copy", self.dtype, count * outputs * inputs) / 2
        found.seconds[0] += max(forward, weights)
        found.seconds[2] += max(grad_input, weights) + max(grad_weight, weights)
        return rows

    def _expert_width(self) -> int:
        decoder = self.model.decoder
        assert decoder is not None
        assert decoder.experts is not None
        return decoder.experts.size

    def _routing(self, found: _Sum, rows: int) -> None:
        """Rows gathered for the experts, weighted and put back, and the same for their gradients."""
        elements = rows * self.h
        for backward in (0, 1):
            self._memory(found, backward, "copy", elements, 2)
            self._memory(found, backward, "scale", elements)
            self._memory(found, backward, "add", elements)

    def _linear(self, found: _Sum, inputs: int, outputs: int, *, bias: bool, trained: bool = True) -> None:
        forward, grad_input, grad_weight = self.profile.linear(self.dtype, self.tokens, inputs, outputs)
        found.seconds[0] += forward
        found.seconds[2] += grad_input + (grad_weight if trained else 0.0)
        if bias:
            self._memory(found, 1, "column_sum", self.tokens * outputs)
            if self.own_linear:
                self._memory(found, 0, self.bias, self.tokens * outputs)

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

    def _activation(self, found: _Sum, elements: int) -> None:
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
