"""Autocast: minGPT's programs where the weights are fp32 and ``torch.autocast`` picks the type of every operator.

Which operators run in half precision and which in fp32 are CUDA's lists (torch/include/ATen/autocast_mode.h): linear
layers and matrix products in half, softmax, ``pow`` and the loss in fp32; the others take their inputs as they come,
so the residual stream stays fp32. Weights are cast once a forward pass and the copies kept until it leaves autocast
(aten/src/ATen/autocast_mode.cpp, cached_cast); autograd keeps those of the matrices until their backward.

Legend: e bytes of autocast's type, b micro batch, s sequence, h width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from dsplan import attention, operators
from dsplan.activations import (
    LOGITS,
    MLP,
    NORMALISED,
    SCALARS,
    STREAM,
    Program,
    Programs,
    _Block,
    _Embedding,
    _Head,
    _Piece,
    _record,
    programs,
)
from dsplan.engine.cast import cast
from dsplan.engine.identity import output_by_size, term_by_size
from dsplan.engine.own_linear import own_linear
from dsplan.kernels import Kernels
from dsplan.ledger import Term
from dsplan.model import ModelShape
from dsplan.operators import BACKWARD, PARAMETER_GRADIENT, WORKING
from dsplan.tape import FREE, PRODUCT, Storage, Tape, Tensor
from dsplan.workload import Workload

WEIGHT_COPIES = Term(
    "weights cast by autocast",
    "e·n of each linear layer",
    "aten/src/ATen/autocast_mode.cpp cached_cast; saved by addmm for its backward",
)
FULL = 4  # bytes of an fp32 element


@lru_cache(maxsize=256)
def autocast_programs(model: ModelShape, workload: Workload, kernels: Kernels) -> Programs:
    """The three pieces under autocast to ``workload.precision``, recorded for one micro batch."""
    pieces = (kind(model, workload, kernels) for kind in (_CastEmbedding, _CastBlock, _CastHead))
    embedding, block, head = (_record(piece) for piece in pieces)
    embedding, block, head = (term_by_size(each, WEIGHT_COPIES) for each in (embedding, block, head))
    if workload.activation_checkpointing == "deepspeed":
        # DeepSpeed's checkpoint does not take autocast into the second run, which is fp32 throughout.
        full = programs(model, replace(workload, precision="fp32"), kernels).block
        block = output_by_size(Program(block.forward, full.backward))
    return Programs(embedding=embedding, block=block, head=head)


class _Cast(_Piece):
    """Sizes and operators that all pieces share: the stream and the norms in fp32, linear layers in half."""

    def __init__(self, model: ModelShape, workload: Workload, kernels: Kernels) -> None:
        super().__init__(model, workload, kernels)
        self.stream_bytes = FULL * self.b * self.s * self.h
        if not kernels.float_norm_statistics:
            self.statistics_bytes = FULL * self.b * self.s
        self.checkpoints = workload.activation_checkpointing != "none"
        # What torch's checkpoint has recomputed is the node's alone and goes before its results are cast
        # (torch/utils/checkpoint.py unpack_hook); what a node has saved itself goes after that (engine.cpp).
        self.forgets_early = workload.activation_checkpointing == "torch" and isinstance(self, _Block)

    def layer_norm(self, x: Tensor, name: str, term: Term) -> Tensor:
        def apply(y: Tensor) -> Tensor:
            return operators.layer_norm(self.tape, y, term, name, self.statistics_bytes, FULL * self.h)

        return self.tape.module(name, apply, x)

    def linear(self, x: Tensor, name: str, n_in: int, n_out: int, term: Term) -> Tensor:
        size = self.e * self.b * self.s * n_out
        half = self.e * self.b * self.s * n_in

        def apply(y: Tensor) -> Tensor:
            return self._linear(y, name, size, half, n_in * n_out, n_out, term)

        return self.tape.module(name, apply, x)

    def _linear(
        self, x: Tensor, name: str, size: int, half: int, weights: int, biases: int, term: Term, *, tied: bool = False
    ) -> Tensor:
        """``F.linear`` of a fp32 or half input; ``biases`` 0 means none. The casts are nodes of their own.

        They are made from the last argument to the first, as GCC evaluates those of one call (autocast_mode.h,
        WrapFunction_), and so autograd goes back by the input's, the weight's and the bias' in that order. The gradient
        of a ``tied`` weight waits for the other use of the weight, which hands both over.
        """
        t, e = self.tape, self.e
        if t.kernels.zero3_linear:
            early = self.forgets_early
            return own_linear(t, x, name, size, half, e, weights, biases, term, tied=tied, forgets_early=early)
        bias = self._cast_parameter(f"{name}.bias", biases) if biases else None
        weight = self._cast_parameter("" if tied else f"{name}.weight", weights)
        y = x if x.storage.size == t.kernels.rounded(half) and e != FULL else cast(t, x, half, NORMALISED)
        kept, kept_weight = t.save(y), t.save(weight)
        if t.saving or not self.checkpoints:
            t.drop(weight)  # autograd's from here on
        if bias is not None and self.recomputes:
            t.drop(bias)
        out = t.tensor(size, term)
        if y is not x:
            t.drop(y)

        def backward(gradient: Storage) -> None:
            if biases:
                dx = t.allocate(half, BACKWARD)
                half_weight = t.allocate(e * weights, BACKWARD)
                if self.forgets_early:  # the bias' sum comes after addmm's own function
                    t.forget(kept, kept_weight)
                half_bias = operators.bias_gradient(t, size // (e * biases), biases, e, term=BACKWARD)
            else:
                half_weight = t.allocate(e * weights, BACKWARD)
                t.mark(PRODUCT, name)
                dx = t.allocate(half, BACKWARD)
            t.release(gradient)
            t.forget(kept, kept_weight)
            if bias is not None:
                t.give(bias, half_bias)
            t.give(weight, half_weight)
            t.give(y, dx)

        return t.node(out, backward)

    def _cast_parameter(self, name: str, numel: int) -> Tensor:
        """A parameter's copy in half, whose gradient is cast back and then the engine's; without a name it is not."""
        t, copy = self.tape, self.tape.tensor(self.e * numel, WEIGHT_COPIES)

        def backward(gradient: Storage) -> None:
            t.allocate(FULL * numel, PARAMETER_GRADIENT)
            t.release(gradient)
            if name:
                t.parameter_gradient(name)

        return t.node(copy, backward)

    @property
    def recomputes(self) -> bool:
        """Whether the tape is in the second run of a checkpointed block, whose own autocast ends with it."""
        return self.checkpoints and self.tape.saving


class _CastBlock(_Cast, _Block):
    """A block: half precision inside attention and MLP, fp32 between them."""

    def block(self, x: Tensor) -> Tensor:
        t = self.tape
        normalised = self.layer_norm(x, "ln_1", NORMALISED)
        attended = t.module("attn", self.attention, normalised)
        t.drop(normalised)
        middle = self._add(x, attended)
        t.drop(attended)
        normalised = self.layer_norm(middle, "ln_2", NORMALISED)
        dropped = t.module("mlp", self.mlp, normalised)
        t.drop(normalised)
        out = self._add(middle, dropped)
        t.drop(dropped, middle)
        return out

    def _add(self, x: Tensor, y: Tensor) -> Tensor:
        """fp32 + half is fp32; autograd casts the half one's gradient (engine.cpp validate_outputs)."""
        t = self.tape
        out = t.tensor(x.storage.size, STREAM)

        def backward(gradient: Storage) -> None:
            t.give(y, t.allocate(y.storage.size, BACKWARD))
            t.give(x, gradient)

        return t.node(out, backward)

    def mlp(self, x: Tensor) -> Tensor:
        t, h, width = self.tape, self.h, self.model.mlp_width
        hidden = self.linear(x, "mlp.c_fc", h, width, MLP)
        if self.model.activation == "gelu_new":
            active = t.module("mlp.act", self._gelu_new, hidden)
        else:
            active = t.module("mlp.act", lambda y: operators.activation(t, y, MLP), hidden)
        t.drop(hidden)
        projected = self.linear(active, "mlp.c_proj", width, h, WORKING)
        t.drop(active)
        dropped = self.dropout(projected, "mlp.dropout")
        t.drop(projected)
        return dropped

    def _gelu_new(self, x: Tensor) -> Tensor:
        """``0.5·x·(1 + tanh(√(2/π)·(x + 0.044715·x³)))``: ``pow`` is fp32, and what follows takes that over."""
        t = self.tape
        size = x.storage.size
        full = FULL // self.e * size
        half = t.tensor(size, MLP)
        x_full = t.tensor(full, MLP)
        kept_x = t.save(x_full)
        cube = t.tensor(full, WORKING)
        t.drop(x_full)
        scaled = t.tensor(full, WORKING)
        t.drop(cube)
        inner = t.tensor(full, WORKING)
        t.drop(scaled)
        argument = t.tensor(full, WORKING)
        t.drop(inner)
        tanh = t.tensor(full, MLP)
        kept_tanh = t.save(tanh)
        t.drop(argument)
        one_plus = t.tensor(full, MLP)
        t.drop(tanh)
        kept_half, kept_one_plus = t.save(half), t.save(one_plus)
        out = t.tensor(full, WORKING)
        t.drop(half, one_plus)

        def backward(gradient: Storage) -> None:
            d_half_full, d_tanh = t.allocate(full, BACKWARD), t.allocate(full, BACKWARD)
            if self.forgets_early:
                t.forget(kept_one_plus, kept_half)
            d_half = t.allocate(size, BACKWARD)
            t.release(d_half_full)
            t.release(gradient)
            t.forget(kept_one_plus, kept_half)
            d_argument = t.allocate(full, BACKWARD)
            t.release(d_tanh)
            t.forget(kept_tanh)
            d_inner = t.allocate(full, BACKWARD)
            t.release(d_argument)
            d_x = t.allocate(size, BACKWARD)
            d_scaled = t.allocate(full, BACKWARD)
            t.release(d_inner)
            square, three, d_cube = (t.allocate(full, BACKWARD) for _ in range(3))
            for each in (three, square, d_scaled):
                t.release(each)
            t.forget(kept_x)
            d_x_of_cube = t.allocate(size, BACKWARD)
            t.release(d_cube)
            t.release(d_x_of_cube)  # added to the other in place
            d_x_of_half = t.allocate(size, BACKWARD)
            t.release(d_half)
            t.release(d_x_of_half)
            t.give(x, d_x)

        return t.node(out, backward)

    def eager_attention(self, qkv: Tensor, shape: attention.AttentionShape) -> Tensor:
        return _eager(self.tape, qkv, shape)


def _eager(t: Tape, qkv: Tensor, shape: attention.AttentionShape) -> Tensor:
    """``dsplan.attention.eager`` with softmax and its dropout in fp32."""
    one, scores = shape.values_bytes, shape.element_bytes * shape.num_scores
    full = FULL * shape.num_scores
    value = t.view(qkv.storage)
    q, k = attention.head_first(t, qkv, shape), attention.head_first(t, qkv, shape)
    kept_qk = [t.save(q), t.save(k)]
    raw = t.tensor(scores, WORKING)
    t.drop(q, k)
    scaled = t.tensor(scores, WORKING)
    t.drop(raw)
    mask = t.tensor(shape.length**2, attention.CAUSAL)
    kept_mask = t.save(mask)
    filled = t.tensor(scores, WORKING)
    t.drop(mask, scaled)
    filled_full = t.tensor(full, WORKING)
    probabilities = t.tensor(full, attention.SCORES)
    kept_probabilities = t.save(probabilities)
    t.drop(filled_full, filled)

    def backward_scores(gradient: Storage) -> None:
        d_filled_full = operators.softmax_gradient(t, full)
        t.release(gradient)
        t.forget(kept_probabilities)
        d_filled = t.allocate(scores, BACKWARD)
        t.release(d_filled_full)
        d_scaled = t.allocate(scores, BACKWARD)
        t.release(d_filled)
        t.forget(kept_mask)
        d_raw = t.allocate(scores, BACKWARD)
        t.release(d_scaled)
        d_q, d_k = t.allocate(one, BACKWARD), t.allocate(one, BACKWARD)
        t.release(d_raw)
        t.forget(*kept_qk)
        d_v = t.take_gradient(value)
        assert d_v is not None
        copies = 0 if shape.is_one_head else 2
        attention._concatenate_gradients(t, qkv, [d_v, d_q, d_k], copies=copies, size=one)

    t.node(probabilities, backward_scores)
    out = _weighted_values(t, value, probabilities, shape)
    t.drop(value)
    return out


def _weighted_values(t: Tape, value: Tensor, probabilities: Tensor, shape: attention.AttentionShape) -> Tensor:
    """Dropout in fp32, its result cast for the product with the values."""
    one, scores = shape.values_bytes, shape.element_bytes * shape.num_scores
    dropped = t.module(
        "attn.attn_dropout",
        lambda x: operators.dropout(
            t, x, shape.num_scores, FULL, shape.dropout, attention.SCORE_MASK, term=attention.SCORES
        ),
        probabilities,
    )
    t.drop(probabilities)
    dropped_half = cast(t, dropped, scores, attention.SCORES)
    v = attention.head_first(t, value, shape)
    kept_v, kept_dropped = t.save(v), t.save(dropped_half)
    out = t.tensor(one, attention.CONTEXT if shape.is_one_head else WORKING)
    t.drop(v, dropped, dropped_half)
    out = attention.side_by_side(t, out, shape)

    def backward_values(gradient: Storage) -> None:
        d_heads_first = attention.heads_first_gradient(t, gradient, shape)
        d_v = t.allocate(one, BACKWARD)
        d_dropped = t.allocate(scores, BACKWARD)
        t.release(d_heads_first)
        t.forget(kept_v, kept_dropped)
        t.give(value, d_v)
        t.give(dropped_half, d_dropped)

    return t.node(out, backward_values)


class _CastEmbedding(_Cast, _Embedding):
    """The embeddings are in no list of autocast's: fp32 throughout."""

    def __init__(self, model: ModelShape, workload: Workload, kernels: Kernels) -> None:
        super().__init__(model, workload, kernels)
        self.e = FULL

    def add_to_the_heads(self, gradient: Storage) -> None:
        """A tied weight's gradient is added in place to the head's, which its cast made anew."""
        if self.tape.kernels.accumulates_in_place:
            self.tape.release(gradient)
        else:
            super().add_to_the_heads(gradient)


class _CastHead(_Cast, _Head):
    """Final norm in fp32, head and log-softmax in half, the loss in fp32; then autocast ends."""

    def forward(self, x: Tensor) -> Tensor:
        t, e = self.tape, self.e
        normalised = self.layer_norm(x, "transformer.ln_f", NORMALISED)
        tokens = self.b * self.s
        size, half = e * tokens * self.model.vocab_size, e * tokens * self.h

        def head(y: Tensor) -> Tensor:
            weights, tied = self.h * self.model.vocab_size, self.model.tie_word_embeddings
            return self._linear(y, "lm_head", size, half, weights, 0, LOGITS, tied=tied)

        logits = t.module("lm_head", head, normalised)
        t.drop(normalised)
        loss = self._cross_entropy(logits)
        t.drop(logits)
        self._leave_autocast()
        return loss

    def _cross_entropy(self, logits: Tensor) -> Tensor:
        """log_softmax keeps the type that it is asked for, the logits'; nll_loss is fp32."""
        t = self.tape
        full = FULL * self.b * self.s * self.model.vocab_size
        log_probabilities = t.tensor(logits.storage.size, LOGITS)
        kept = t.save(log_probabilities)
        log_full = t.tensor(full, LOGITS)
        kept_full = t.save(log_full)  # nll_loss saves its input
        loss, weight = t.tensor(FULL, SCALARS), t.tensor(FULL, SCALARS)
        kept_weight = t.save(weight)
        t.drop(weight, log_full, log_probabilities)

        def backward(gradient: Storage) -> None:
            d_log_full = t.allocate(full, BACKWARD)
            t.release(gradient)
            t.forget(kept_weight, kept_full)
            d_log = t.allocate(logits.storage.size, BACKWARD)
            t.release(d_log_full)
            d_logits = t.allocate(logits.storage.size, BACKWARD)
            t.release(d_log)
            t.forget(kept)
            t.give(logits, d_logits)

        return t.node(loss, backward)

    def _leave_autocast(self) -> None:
        """The cache is cleared: what only it held goes, the biases' copies, and of checkpointed blocks all."""
        t = self.tape
        if t.kernels.zero3_linear:
            return  # its casts are not kept
        parameters = [p for p in self.model.block_parameters if not p.name.startswith("ln_")]
        for _ in range(self.model.num_layers):
            for parameter in parameters:
                if self.checkpoints or len(parameter.shape) == 1:
                    size = t.kernels.rounded(self.e * parameter.numel)
                    t.events.append((FREE, size, WEIGHT_COPIES))
