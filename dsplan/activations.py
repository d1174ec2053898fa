"""Activations: minGPT as a program on the tape, from the tokens to the loss and back.

The program has three pieces, because every block does the same: embedding, one block, head. Each is
recorded once per workload; the walk replays the block for every layer.

Legend: e bytes of an element, b micro batch, s sequence, h width, a heads, V vocabulary, T positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from dsplan import attention, operators
from dsplan.attention import AttentionShape
from dsplan.decoders import covered as decoders
from dsplan.errors import InputError
from dsplan.kernels import Kernels
from dsplan.ledger import Term
from dsplan.model import ModelShape
from dsplan.operators import BACKWARD, RESIDUAL_MASK, WORKING
from dsplan.tape import ALLOC, ENTER, ENTER_BACKWARD, FREE, LEAVE, Event, Storage, Tape, Tensor
from dsplan.workload import Workload

STREAM = Term("residual stream", "e·b·s·h per half block", "minGPT Block.forward; saved as layer norm's input")
NORMALISED = Term("layer norm outputs", "e·b·s·h each", "saved as the next linear's input")
MLP = Term("MLP activations", "4·e·b·s·h each", "c_fc output and what the GELU saves; derivatives.yaml")
LOGITS = Term("logits and log-probabilities", "e·b·s·V each", "minGPT lm_head; aten _log_softmax saves its result")
INPUTS = Term("tokens, targets, positions", "8·b·s each, 8·s", "int64 inputs of the step")
SCALARS = Term("loss and its scalars", "e each", "aten nll_loss_forward")


#: The name under which a block's own hooks are marked; its submodules' names carry no prefix.
BLOCK = "block"
ROOT = "model"  # the whole of it, which DeepSpeed enters first and, from its output, first in the backward pass


@dataclass(slots=True)
class Program:
    """The events of one piece, forward and backward."""

    forward: tuple[Event, ...]
    backward: tuple[Event, ...]


@dataclass(slots=True)
class Programs:
    """The three pieces of a decoder."""

    embedding: Program
    block: Program
    head: Program


@lru_cache(maxsize=256)
def programs(model: ModelShape, workload: Workload, kernels: Kernels, *, modules: bool = True) -> Programs:
    """Record the three pieces for one micro batch.

    Args:
        modules: with marks where submodules are entered and left.

    Raises:
        InputError: a decoder that the formulas do not cover; the message offers the dry run.
    """
    pieces: Sequence[_Piece | decoders.Piece]
    if model.decoder is not None:
        require_formulas(model, workload)
        pieces = decoders.pieces_of(model.decoder, model.attention, workload, kernels)
    else:
        pieces = [kind(model, workload, kernels) for kind in (_Embedding, _Block, _Head)]
    return Programs(*[_record(piece, modules=modules) for piece in pieces])


@lru_cache(maxsize=64)
def block_programs(model: ModelShape, workload: Workload, kernels: Kernels) -> tuple[Program, ...]:
    """The program of each layer's block; layers that are alike have the same one.

    Raises:
        InputError: as :func:`programs`.
    """
    if model.decoder is None:
        return (programs(model, workload, kernels).block,) * model.num_layers
    require_formulas(model, workload)
    blocks = decoders.blocks_of(model.decoder, model.attention, workload, kernels)
    found = {id(block): _record(block) for block in dict.fromkeys(blocks)}
    return tuple(found[id(block)] for block in blocks)


@lru_cache(maxsize=256)
def layers_vary(model: ModelShape, workload: Workload) -> bool:
    """Whether the layers of a decoder differ, or not all of its parameters are trained."""
    return model.decoder is not None and decoders.varies(model.decoder, model.attention, workload)


def not_covered(model: ModelShape, workload: Workload) -> str | None:  # noqa: ARG001  # what is covered may depend on it
    """Why the formulas have no activations for ``model``; None where they have, as for every minGPT."""
    if model.decoder is None:
        return None
    return decoders.uncovered(model.decoder, model.attention)


def require_formulas(model: ModelShape, workload: Workload) -> None:
    """Refuse a decoder whose activations have no formula.

    Raises:
        InputError: it has none; a dry run knows them.
    """
    why = not_covered(model, workload)
    if why is not None:
        raise InputError(
            f"model_type {model.model_type}: the formulas do not cover {why}; a dry run does: "
            "dsplan verify --device fake"
        )


class _Piece:
    """Sizes that all pieces share."""

    def __init__(self, model: ModelShape, workload: Workload, kernels: Kernels) -> None:
        self.model = model
        self.workload = workload
        self.tape = Tape(kernels)
        self.e = workload.element_bytes
        self.b, self.s, self.h = workload.micro_batch_size, workload.sequence_length, model.hidden_size
        self.stream_bytes = self.e * self.b * self.s * self.h
        # LayerNorm accumulates in fp32 on CUDA; the CPU kernel keeps the statistics in the input's type.
        self.statistics_bytes = (4 if kernels.float_norm_statistics else self.e) * self.b * self.s

    def linear(self, x: Tensor, name: str, n_in: int, n_out: int, term: Term) -> Tensor:
        e = self.e
        size = e * self.b * self.s * n_out

        def apply(y: Tensor) -> Tensor:
            return operators.linear(self.tape, y, size, term, name, e * n_in * n_out, e * n_out, element_bytes=e)

        return self.tape.module(name, apply, x)

    def layer_norm(self, x: Tensor, name: str, term: Term) -> Tensor:
        def apply(y: Tensor) -> Tensor:
            return operators.layer_norm(self.tape, y, term, name, self.statistics_bytes, self.e * self.h)

        return self.tape.module(name, apply, x)

    def dropout(self, x: Tensor, name: str, *, term: Term = WORKING) -> Tensor:
        numel = self.b * self.s * self.h

        def apply(y: Tensor) -> Tensor:
            return operators.dropout(self.tape, y, numel, self.e, self.model.dropout, RESIDUAL_MASK, term=term)

        return self.tape.module(name, apply, x)

    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class _Block(_Piece):
    """ln_1, attention, ln_2, MLP with residuals, under activation checkpointing or not."""

    def forward(self, x: Tensor) -> Tensor:
        kind = self.workload.activation_checkpointing

        def block(y: Tensor) -> Tensor:
            return self.tape.module(BLOCK, self.block, y)

        if kind == "none":
            return block(x)
        return self.tape.checkpoint(block, x, stops_early=kind == "torch")

    def block(self, x: Tensor) -> Tensor:
        t = self.tape
        normalised = self.layer_norm(x, "ln_1", NORMALISED)
        attended = t.module("attn", self.attention, normalised)
        t.drop(normalised)
        middle = operators.add(t, x, attended, STREAM)
        t.drop(attended)
        normalised = self.layer_norm(middle, "ln_2", NORMALISED)
        dropped = t.module("mlp", self.mlp, normalised)
        t.drop(normalised)
        out = operators.add(t, middle, dropped, STREAM)
        t.drop(dropped, middle)
        return out

    def mlp(self, x: Tensor) -> Tensor:
        t, h = self.tape, self.h
        hidden = self.linear(x, "mlp.c_fc", h, self.model.mlp_width, MLP)
        activate = operators.gelu_new if self.model.activation == "gelu_new" else operators.activation
        active = t.module("mlp.act", lambda y: activate(t, y, MLP), hidden)
        t.drop(hidden)
        projected = self.linear(active, "mlp.c_proj", self.model.mlp_width, h, WORKING)
        t.drop(active)
        dropped = self.dropout(projected, "mlp.dropout")
        t.drop(projected)
        return dropped

    def attention(self, x: Tensor) -> Tensor:
        t, h = self.tape, self.h
        shape = AttentionShape(
            batch=self.b,
            length=self.s,
            heads=self.model.num_attention_heads,
            head_width=self.model.head_width,
            element_bytes=self.e,
            dropout=self.model.dropout,
        )
        qkv = self.linear(x, "attn.c_attn", h, 3 * h, attention.QKV)
        eager = self.model.attention == "eager"
        context = self.eager_attention(qkv, shape) if eager else attention.fused(t, qkv, shape)
        projected = self.linear(context, "attn.c_proj", h, h, WORKING)
        dropped = self.dropout(projected, "attn.resid_dropout")
        t.drop(projected, qkv, context)  # q, k, v and y stay in the function's locals until it returns
        return dropped

    def eager_attention(self, qkv: Tensor, shape: AttentionShape) -> Tensor:
        return attention.eager(self.tape, qkv, shape)


class _Embedding(_Piece):
    """Token and position embeddings, and the dropout after them.

    Their inputs are integers, so stage 3 sees no gradient at the inputs and its post-backward hook
    never fires: the parameters stay gathered until the step (release_backward_leftovers).
    """

    def forward(self, _: Tensor) -> Tensor:
        t, e = self.tape, self.e
        t.mark(ENTER, ROOT)
        positions = t.tensor(8 * self.s, INPUTS)
        kept = t.save(positions)
        t.mark(ENTER, "transformer.wte")
        tokens_embedded = t.tensor(self.stream_bytes, WORKING)
        t.mark(LEAVE, "transformer.wte")
        t.mark(ENTER, "transformer.wpe")
        positions_embedded = t.tensor(e * self.s * self.h, WORKING)
        t.mark(LEAVE, "transformer.wpe")
        out = t.tensor(self.stream_bytes, STREAM)

        def backward(gradient: Storage) -> None:
            # The position gradient is summed over the batch first (expand's backward).
            summed = t.allocate(e * self.s * self.h, BACKWARD) if self.b > 1 else t.hold(gradient)
            t.mark(ENTER_BACKWARD, "transformer.wpe")
            t.allocate(e * self.model.max_position_embeddings * self.h, operators.PARAMETER_GRADIENT)
            t.release(summed)
            t.forget(kept)
            t.parameter_gradient("transformer.wpe.weight")
            t.mark(ENTER_BACKWARD, "transformer.wte")
            token_gradient = operators.embedding_gradient(t, self.b * self.s, self.model.vocab_size, self.h, e)
            t.release(gradient)
            if self.model.tie_word_embeddings:
                self.add_to_the_heads(token_gradient)
            t.parameter_gradient("transformer.wte.weight")

        t.node(out, backward)
        t.drop(tokens_embedded, positions_embedded)
        dropped = self.dropout(out, "transformer.drop", term=STREAM)
        t.drop(out, positions)
        return dropped

    def add_to_the_heads(self, gradient: Storage) -> None:
        """A tied weight's gradient is added to the one that its use as the head has left waiting.

        Not in place where that one is a view of the transposed product, which counts as shared
        (torch/csrc/autograd/input_buffer.cpp, can_accumulate_inplace).
        """
        t = self.tape
        if not (t.kernels.accumulates_in_place and t.kernels.zero3_linear):
            t.allocate(gradient.size, operators.PARAMETER_GRADIENT)
            t.events.append((FREE, int(gradient.size), gradient.term))  # a plain number: not this one's, the head's
        t.release(gradient)


class _Head(_Piece):
    """Final layer norm, language-model head, cross-entropy."""

    def forward(self, x: Tensor) -> Tensor:
        t = self.tape
        normalised = self.layer_norm(x, "transformer.ln_f", NORMALISED)
        weight_bytes = self.e * self.h * self.model.vocab_size
        size = self.e * self.b * self.s * self.model.vocab_size
        tied = self.model.tie_word_embeddings

        def head(y: Tensor) -> Tensor:
            return operators.linear(t, y, size, LOGITS, "lm_head", weight_bytes, 0, element_bytes=self.e, tied=tied)

        logits = t.module("lm_head", head, normalised)
        t.drop(normalised)
        loss = operators.cross_entropy(t, logits, self.e, LOGITS, SCALARS)
        t.drop(logits)
        return loss


def _record(piece: _Piece | decoders.Piece, *, modules: bool = True) -> Program:
    """Run a piece forward and backward on its tape.

    A piece frees its input, where autograd lets go of it, and its output is not its own.
    """
    t = piece.tape
    t.modules = modules
    stream = decoders.STREAM if isinstance(piece, decoders.Piece) else STREAM
    starts = isinstance(piece, (_Embedding, decoders.Embedding))
    # A plain number: what one piece allocates and another frees has no identity in either.
    size = int(t.kernels.rounded(piece.stream_bytes))
    x = Tensor(Storage(size, stream, silent=starts))
    start = len(t.events)
    out = piece.forward(x)
    t.drop(x)
    turn = len(t.events)
    if isinstance(piece, (_Head, decoders.Head)):  # the loss is the model's output: its backward is the first
        t.mark(ENTER_BACKWARD, ROOT)
    else:
        _hand_over(t, out.storage)
    gradient = t.allocate(out.storage.size, BACKWARD)
    t.drop(out)
    t.run_backward(out, gradient)
    arrived = t.take_gradient(x)
    if arrived is not None:
        t.release(arrived)
    return Program(forward=tuple(t.events[start:turn]), backward=tuple(t.events[turn:]))


def _hand_over(t: Tape, storage: Storage) -> None:
    """The next piece frees it."""
    storage.silent = True
    if type(storage.size) is int:  # nor has it one
        return
    for index, (kind, size, term) in enumerate(t.events):
        if kind == ALLOC and size is storage.size:
            t.events[index] = (kind, int(size), term)
