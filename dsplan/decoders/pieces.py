"""What the pieces of a decoder of transformers' have in common: sizes, linear layers, norms, and what is trained.

Every block does the same, so each piece is recorded once per workload. A piece owns its input: what it frees of the
residual stream it frees itself, and its output belongs to the piece that follows.

Legend: e bytes of an element, b micro batch, s sequence, h width, f width of the MLP, d head size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

from dsplan import operators
from dsplan.decoders.attention import SCORES
from dsplan.decoders.classes import BLOOM, FALCON, GPT2, GPT_NEOX, OPT
from dsplan.decoders.kinds import Kind, kinds_of
from dsplan.decoders.linears import first_linear, frozen_linear, scaled
from dsplan.decoders.masks import Masks
from dsplan.decoders.norms import NormShape, norm_of_constant, rms_norm, rms_norm_plus_one
from dsplan.decoders.parts import flat
from dsplan.families import Decoder, Parameter
from dsplan.families.decoder import LAYER_NORM, RMS_PLUS_ONE
from dsplan.kernels import Kernels
from dsplan.ledger import Term
from dsplan.operators import WORKING
from dsplan.tape import ENTER, ENTER_BACKWARD, LEAVE, Tape, Tensor
from dsplan.workload import Workload

STREAM = Term("residual stream", "e·b·s·h per half block", "modeling_llama.py LlamaDecoderLayer.forward")
NORMALISED = Term("norm outputs", "e·b·s·h each", "saved as the next linear's input")
LOGITS = Term("logits", "e·b·s·V", "modeling_llama.py lm_head: held until the loss is returned")
SCALARS = Term("loss and its scalars", "4 each", "aten nll_loss_forward")
POSITIONS = Term(
    "positions, cosines and sines", "8·s; e·s·d each", "modeling_llama.py LlamaRotaryEmbedding, for all blocks"
)
ADAPTED = Term("inputs of adapters' second products", "e·b·s·r each", "peft/tuners/lora/layer.py: lora_B(lora_A(x))")

#: Names under which hooks are marked: a block's own, the whole model, and the decoder in it without its head.
BLOCK, ROOT, INNER = "block", "model", "decoder"
EAGER = "eager"


class Piece:
    """Sizes that all pieces share, and the modules that they have in common."""

    def __init__(
        self, decoder: Decoder, kind_of_attention: str, workload: Workload, kernels: Kernels, kind: Kind | None = None
    ) -> None:
        self.decoder = decoder
        self.kinds = kinds_of(decoder, workload, eager=kind_of_attention == EAGER)
        self.kind = kind or self.kinds[-1]
        #: Whether each of the piece's parameters is trained, by its name.
        self.trains = {parameter.name: parameter.trained for parameter in self.parameters}
        self._constants: dict[int, Tensor] = {}
        self._leaves: list[Tensor] = []
        #: What a name in the block has until it returns.
        self.probabilities: list[Tensor] = []
        self.eager = kind_of_attention == EAGER
        self.workload = workload
        self.tape = Tape(kernels)
        self.e = workload.element_bytes
        self.b, self.s, self.h = workload.micro_batch_size, workload.sequence_length, decoder.hidden_size
        self.tokens = self.b * self.s
        self.stream_bytes = self.e * self.tokens * self.h
        self.masks = Masks(
            decoder=decoder,
            kinds=self.kinds,
            eager=self.eager,
            checkpointed=workload.activation_checkpointing != "none",
            row=self.e * self.tokens,
            length=self.s,
        )

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """The parameters of the piece: here those of both ends."""
        return (*self.decoder.before, *self.decoder.after)

    def constant(self, make: Callable[[], Tensor]) -> Tensor:
        """What ``make`` returns, with nothing saved of it: no gradient is asked for, and one that comes is let go."""
        t = self.tape
        saving, t.saving = t.saving, False
        out = make()
        t.saving = saving
        self._constants[id(out)] = out  # which also keeps its identity
        return t.node(out, t.release)

    def needs_gradient(self, x: Tensor) -> bool:
        """Whether a gradient is asked for of ``x``: it was not made by :meth:`constant`."""
        return id(x) not in self._constants

    @property
    def named(self) -> tuple[tuple[int, Term], ...]:
        """Bytes, and of what, that only the model's own names hold while its blocks run.

        The embedding, where no block saves its input: it is there twice in the first block alone. The mask of eager
        attention, unless checkpointed blocks keep it for their second run.
        """
        rounded = self.tape.kernels.rounded
        masks = tuple((int(rounded(size)), term) for size, term in self.masks.named)
        if self.decoder.causal_lm in (GPT2, OPT):  # GPT-2's positions are of one sample, OPT's of each
            places = int(rounded(self.e * self.s * self.h)) if self.decoder.causal_lm == GPT2 else self.whole_stream
            tokens = ((self.whole_stream, STREAM),) if self.names_tokens else ()
            return *tokens, (places, STREAM), *masks
        if self.keeps_embedding and not self.has_leaf:
            return (self.whole_stream, STREAM), *masks
        if self.workload.activation_checkpointing != "none":
            # Their blocks return their probabilities, which the last one's result has until the next one's.
            scores = self.e * self.b * self.decoder.num_attention_heads * self.s**2
            returned = self.eager and self.decoder.causal_lm in (BLOOM, FALCON)
            return ((int(rounded(scores)), SCORES),) if returned else ()
        saved = self.e == 4 or self.decoder.norm == LAYER_NORM
        return masks if saved else (*masks, (self.whole_stream, STREAM))

    @property
    def has_leaf(self) -> bool:
        """Whether the tokens' embedding is a leaf of autograd's graph, which holds it until the backward pass is over:
        nothing of it is trained, but blocks that run again need an input that asks for a gradient (transformers'
        modeling_utils.py enable_input_require_grads; torch/csrc/autograd/functions/accumulate_grad.h, ``variable``)."""
        trained = any(parameter.trained for parameter in self.decoder.before)
        return not trained and self.workload.activation_checkpointing != "none"

    @property
    def names_tokens(self) -> bool:
        """Of GPT-2 and OPT: whether a name alone has the tokens' embedding, or what is projected of it."""
        return not self.has_leaf or self.decoder.before[0].shape[1] != self.h

    @property
    def keeps_embedding(self) -> bool:
        """Whether it is GPT-NeoX whose embedding has a dropout: a name keeps what goes into it."""
        return self.decoder.causal_lm == GPT_NEOX and self.decoder.embedding_dropout > 0

    @property
    def has_window(self) -> bool:
        """Whether a window shorter than the samples takes a mask in place of the kernel's own causal one."""
        return self.kind.window is not None

    @property
    def whole_stream(self) -> int:
        """Bytes of the stream as they count, a plain number for what one piece takes and another gives back."""
        return int(self.tape.kernels.rounded(self.stream_bytes))

    @property
    def root(self) -> str:
        """The module that holds embedding, blocks and last norm: ``model.`` of ``model.layers.``."""
        return self.decoder.prefix.rpartition(".")[0].rpartition(".")[0]

    def linear(
        self,
        x: Tensor,
        name: str,
        n_out: int,
        term: Term,
        *,
        bias: bool,
        n_in: int | None = None,
        then: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """A linear layer; ``then``: what its module does with the product."""
        if self.is_adapted(name):
            return self.adapted(x, name, n_out, term, self.linear, bias=bias, n_in=n_in)
        e, inputs, t = self.e, n_in or self.h, self.tape
        size, weights, biases = e * self.tokens * n_out, e * inputs * n_out, e * n_out if bias else 0

        def apply(y: Tensor) -> Tensor:
            trained = self.trains.get(f"{name}.weight", True)
            if self.needs_gradient(x):
                if trained:
                    return operators.linear(t, y, size, term, name, weights, biases, element_bytes=e)
                own = t.kernels.zero3_linear and not self.multiplies
                return frozen_linear(t, y, size, term, name, own=own)
            if trained:
                return first_linear(t, y, size, term, name, weights, biases)
            return self.constant(lambda: t.tensor(size, term))

        return self.hooked(name, apply if then is None else lambda y: then(apply(y)), x)

    @property
    def multiplies(self) -> bool:
        """Whether the model's linear layers are none of torch's, so that stage 3 does not put its function in their
        place: transformers' Conv1D, and FalconLinear."""
        return self.decoder.transposed or self.decoder.saves_weights

    def hooked(self, name: str, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """A submodule: the backward pass enters it where its result needs a gradient, and leaves it where its input
        does (deepspeed/runtime/zero/parameter_offload.py, PreBackwardFunctionForModule, PostBackwardFunctionModule).
        """
        t = self.tape
        if self.needs_gradient(x):
            return t.module(name, function, x)
        t.mark(ENTER, name)
        out = function(x)
        if self.needs_gradient(out):
            t.hook(ENTER_BACKWARD, name)
        t.mark(LEAVE, name)
        return out

    def is_adapted(self, name: str) -> bool:
        """Whether the linear layer ``name`` has an adapter beside it."""
        return f"{name}.lora_A.default.weight" in self.trains

    def adapted(
        self,
        x: Tensor,
        name: str,
        n_out: int,
        term: Term,
        linear: Callable[..., Tensor],
        *,
        bias: bool,
        n_in: int | None,
    ) -> Tensor:
        """A frozen layer and its adapter, ``base(x) + B(A(x)) * scaling`` (peft/tuners/lora/layer.py).

        ``linear`` makes the three products, as the layer itself would: :meth:`linear` or :meth:`flat_linear`.
        """
        t = self.tape
        rank = next(each.shape[0] for each in self.parameters if each.name == f"{name}.lora_A.default.weight")

        def adapt(y: Tensor) -> Tensor:
            base = linear(y, f"{name}.base_layer", n_out, term, bias=bias, n_in=n_in)
            y = self.hooked(f"{name}.lora_dropout.default", lambda z: z, y)  # none: an nn.Identity
            narrow = linear(y, f"{name}.lora_A.default", rank, ADAPTED, bias=False, n_in=n_in)
            wide = linear(narrow, f"{name}.lora_B.default", n_out, WORKING, bias=False, n_in=rank)
            t.drop(narrow)
            added = scaled(t, wide, WORKING)
            t.drop(wide)
            out = operators.add(t, base, added, term)
            t.drop(base, added)
            return out

        return t.module(name, adapt, x)

    def flat_linear(
        self, x: Tensor, name: str, n_out: int, term: Term, *, bias: bool, n_in: int | None = None
    ) -> Tensor:
        """A linear layer whose tokens are one dimension already: the gradient of its input is no view."""
        if self.is_adapted(name):
            return self.adapted(x, name, n_out, term, self.flat_linear, bias=bias, n_in=n_in)
        if not self.needs_gradient(x):
            return self.linear(x, name, n_out, term, bias=bias, n_in=n_in)
        rows = flat(self.tape, x)
        out = self.linear(rows, name, n_out, term, bias=bias, n_in=n_in)
        self.tape.drop(rows)
        return out

    def norm(self, x: Tensor, name: str, term: Term = NORMALISED, *, heads: int = 0, width: int = 0) -> Tensor:
        """The family's norm of the stream, of each of ``heads`` heads, or of another ``width``."""
        d = self.decoder
        rows, width = (self.tokens * heads, d.head_size) if heads else (self.tokens, width or self.h)

        def apply(y: Tensor) -> Tensor:
            trained = self.trains.get(f"{name}.weight", True)
            if d.norm == LAYER_NORM:
                statistics = (4 if self.tape.kernels.float_norm_statistics else self.e) * rows
                weights = self.e * width if trained else None

                def normalised() -> Tensor:
                    return operators.layer_norm(self.tape, y, term, name, statistics, weights)

                return normalised() if trained or self.needs_gradient(x) else self.constant(normalised)
            shape = NormShape(rows=rows, width=width, element_bytes=self.e)
            scale = rms_norm_plus_one if d.norm == RMS_PLUS_ONE else rms_norm
            if self.needs_gradient(x):
                return scale(self.tape, y, shape, name, term, trained=trained)
            if trained:
                return norm_of_constant(self.tape, y, shape, name, term, plus_one=d.norm == RMS_PLUS_ONE)
            return self.constant(lambda: scale(self.tape, y, shape, name, term))

        return self.hooked(name, apply, x)

    def forward(self, x: Tensor) -> Tensor:
        """Record what the piece runs on the stream ``x`` (b, s, h); returns what the next piece owns."""
        raise NotImplementedError
