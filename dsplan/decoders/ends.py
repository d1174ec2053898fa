"""The ends of a decoder of transformers' on the tape: embedding with positions, last norm, head and loss.

Legend: e bytes of an element, b micro batch, s sequence, h width, d head size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

from dsplan import operators
from dsplan.decoders import attention
from dsplan.decoders.classes import GEMMA3
from dsplan.decoders.linears import frozen_linear
from dsplan.decoders.loss import causal_lm_loss
from dsplan.decoders.pieces import INNER, LOGITS, POSITIONS, ROOT, SCALARS, STREAM, Piece
from dsplan.operators import BACKWARD, WORKING
from dsplan.tape import ALLOC, ENTER, ENTER_BACKWARD, FREE, LEAVE, Backward, Storage, Tape, Tensor


class Embedding(Piece):
    """Token embedding, positions, the cosines and sines that all blocks share, and the mask of eager attention.

    The inputs are integers: stage 3 sees no gradient there and gives the embedding back only after the step.
    """

    def forward(self, _: Tensor) -> Tensor:
        """Everything before the first block; returns the stream (b, s, h) (modeling_llama.py LlamaModel.forward)."""
        t, d = self.tape, self.decoder
        shared: list[Tensor] = []
        name = self.enter()
        out = self.embedded(name, shared)
        if d.scaled_embedding:
            plain, out = out, t.tensor(self.stream_bytes, STREAM)

            def backward_scale(gradient: Storage) -> None:
                dx = t.allocate(self.stream_bytes, BACKWARD)
                t.release(gradient)
                t.give(plain, dx)

            t.node(out, backward_scale)
            self.hold_leaf(plain)
            t.drop(plain)
        t.mark(LEAVE, name)
        shared.append(t.tensor(8 * self.s, POSITIONS))
        shared += self.kept_masks()
        out = self.dropped(out)
        t.mark(ENTER, f"{self.root}.rotary_emb")
        # Gemma 3 has other frequencies where a layer has a window (Gemma3TextModel.forward).
        kinds = len(set(d.windows)) if d.causal_lm == GEMMA3 else 1
        for _kind in range(kinds):
            shared += self.cosines_and_sines()
        self.hold_named(int(self.keeps_embedding and not self.has_leaf))
        return out

    def dropped(self, x: Tensor) -> Tensor:
        """Dropout of what goes into the first block, in the place of ``x``: most families have none."""
        return x

    def outlives(self, x: Tensor, index: int) -> Tensor:
        """``x``, the last that was made, which the head's piece frees, by ``named``: it has a name until then."""
        events = self.tape.events
        x.storage.silent = True
        made = max(at for at, (kind, _, _) in enumerate(events) if kind == ALLOC)
        events[made] = (ALLOC, *self.named[index])
        return x

    def enter(self) -> str:
        """Enter the model, its decoder and the embedding, whose name this is."""
        name = self.decoder.before[0].name.rpartition(".")[0]
        for each in (ROOT, INNER, name):
            self.tape.mark(ENTER, each)
        return name

    def embedded(self, name: str, shared: list[Tensor]) -> Tensor:
        """The tokens' embeddings; with their backward goes what is ``shared`` by then."""
        t = self.tape
        out = t.tensor(self.stream_bytes, STREAM)
        if self.is_constant:
            self._constants[id(out)] = out
        return t.node(out, self.tokens_backward(name, self.h, shared))

    def tokens_backward(self, name: str, width: int, shared: Sequence[Tensor] = ()) -> Backward:
        """The backward pass of the tokens' embedding ``name`` of ``width`` elements; ``shared`` goes with it."""
        t, d = self.tape, self.decoder

        def backward(gradient: Storage) -> None:
            t.drop(*shared)
            if not self.trains[f"{name}.weight"]:
                self.arrived(name, gradient)
                return
            t.mark(ENTER_BACKWARD, name)
            weight = operators.embedding_gradient(t, self.tokens, d.vocab_size, width, self.e)
            t.release(gradient)
            if d.tied:
                add_to_the_heads(t, weight)
            t.parameter_gradient(f"{name}.weight")

        return backward

    @property
    def is_constant(self) -> bool:
        """Whether what comes out needs no gradient: nothing of it is trained, and no checkpointed block asks for one
        (transformers' ``enable_input_require_grads``)."""
        trained = any(parameter.trained for parameter in self.decoder.before)
        return not trained and not self.has_leaf

    def hold_leaf(self, tokens: Tensor) -> None:
        """The graph's hold of the tokens' embedding, where that is a leaf (:attr:`has_leaf`) and not what the first
        block gets, which holds it too."""
        if self.has_leaf:
            self._leaves.append(self.tape.view(tokens.storage))

    def arrived(self, name: str, gradient: Storage) -> None:
        """The gradient of an embedding that is not trained."""
        if not self.is_constant:
            self.tape.mark(ENTER_BACKWARD, name)
        self.tape.release(gradient)
        self.tape.drop(*self._leaves)

    def kept_masks(self) -> list[Tensor]:
        """What the masks' names are not the last to have."""
        return [self.tape.tensor(size, term) for size, term in self.masks.saved]

    def hold_named(self, first: int = 0) -> None:
        """Take what only the model's names have, from ``first`` on; the head gives all of it back (:attr:`named`)."""
        for size, term in self.named[first:]:
            self.tape.events.append((ALLOC, size, term))

    def cosines_and_sines(self) -> list[Tensor]:
        """In the type of the stream, made through fp32 (LlamaRotaryEmbedding.forward)."""
        t, size = self.tape, self.s * (self.decoder.rotary_size or self.decoder.head_size)  # ALiBi leaves them unused
        frequencies, whole = t.tensor(2 * size, WORKING), t.tensor(4 * size, WORKING)
        waves = []
        for _ in range(2):
            wave = t.tensor(4 * size, WORKING)
            waves.append(t.tensor(4 * size, WORKING))
            t.drop(wave)
        if self.e == 4:
            t.drop(frequencies, whole)
            return waves
        made = [t.tensor(self.e * size, POSITIONS) for _ in range(2)]
        t.drop(frequencies, whole, *waves)
        return made


class Head(Piece):
    """Last norm, language-model head, and the loss in fp32."""

    def forward(self, x: Tensor) -> Tensor:
        """The stream (b, s, h) to the loss (modeling_llama.py LlamaForCausalLM.forward)."""
        t, d = self.tape, self.decoder
        normalised = self.last(x)
        t.hook(ENTER_BACKWARD, INNER)
        for size, term in self.named:
            t.events.append((FREE, size, term))
        e, v = self.e, d.vocab_size

        def head(y: Tensor) -> Tensor:
            size = e * self.tokens * v
            if not self.trains[d.tied or "lm_head.weight"]:
                return frozen_linear(t, y, size, LOGITS, "lm_head", own=t.kernels.zero3_linear)
            weight = e * self.width * v
            return operators.linear(t, y, size, LOGITS, "lm_head", weight, 0, element_bytes=e, tied=bool(d.tied))

        logits = t.module("lm_head", head, normalised)
        if d.head_softcap is not None:
            logits = attention.softcapped(t, logits, e * self.tokens * v, LOGITS)
        loss = causal_lm_loss(t, logits, element_bytes=e, num_tokens=self.tokens, batch=self.b, scalar=SCALARS)
        t.drop(logits, normalised)  # by its name, whether it is saved or not
        return loss

    @property
    def width(self) -> int:
        """Elements of a token that the head multiplies."""
        return self.h

    def last(self, x: Tensor) -> Tensor:
        """What comes between the blocks and the head, in the place of ``x``: a norm."""
        name = next(each.name for each in self.decoder.after if len(each.shape) == 1).rpartition(".")[0]
        normalised = self.norm(x, name)
        self.tape.drop(x)
        return normalised


def add_to_the_heads(t: Tape, gradient: Storage) -> None:
    """A tied weight's gradient is added to the one that its use as the head has left waiting.

    Not in place where that one is a view of the transposed product, which counts as shared
    (torch/csrc/autograd/input_buffer.cpp, can_accumulate_inplace).
    """
    if not (t.kernels.accumulates_in_place and t.kernels.zero3_linear):
        t.allocate(gradient.size, operators.PARAMETER_GRADIENT)
        t.events.append((FREE, int(gradient.size), gradient.term))  # a plain number: not this one's, the head's
    t.release(gradient)
