"""A mixture of experts as transformers runs it with grouped products, its default on GPUs.

integrations/moe.py ``grouped_mm_experts_forward``: every token goes to k experts, so that S = b·s·k rows are sorted by
expert and multiplied in one product; how the router (``dsplan.decoders.routers``) spreads them changes no size.

Legend: e bytes of an element, T = b·s tokens, k experts per token, S = T·k, h width, f width of an expert, E experts.
"""

from __future__ import annotations

from dsplan.decoders.routers import ROUTES, Router
from dsplan.families import Experts
from dsplan.ledger import Term
from dsplan.operators import BACKWARD, PARAMETER_GRADIENT, WORKING
from dsplan.tape import Saved, Storage, Tape, Tensor

ROWS = Term("rows of the experts", "e·T·k·h each", "integrations/moe.py: gathered inputs and outputs, saved")
HIDDEN = Term(
    "expert activations",
    "e·T·k·2f and e·T·k·f each, however tokens are routed",
    "integrations/moe.py grouped_mm: gate_up, activation, product of all rows at once; balanced is worst",
)


class Mixture:
    """One mixture on a tape: ``module`` names the submodule that holds ``gate`` and ``experts``."""

    def __init__(
        self, t: Tape, experts: Experts, *, tokens: int, width: int, element_bytes: int, trained: bool = True
    ) -> None:
        self.t = t
        self.trained = trained
        self.experts = experts
        self.tokens, self.h, self.e = tokens, width, element_bytes
        self.rows = tokens * experts.per_token
        self.name = experts.module
        #: Bytes of an element of the weights, and of the rows that they multiply.
        self.w = 4 if experts.wide_weights else element_bytes

    def run(self, x: Tensor) -> Tensor:
        """The mixture's output for a stream ``x`` (T, h)."""
        held: list[Tensor] = []  # by their names, until the mixture returns
        out = self.routed(x, held)
        self.t.drop(*held)
        return out

    def routed(self, x: Tensor, held: list[Tensor]) -> Tensor:
        """What the experts to which ``x`` is routed make of it; ``held`` is what the router's names hold."""
        router = Router(
            t=self.t,
            experts=self.experts,
            tokens=self.tokens,
            width=self.h,
            element_bytes=self.e,
            weight_bytes=self.w,
            held=held,
            trained=self.trained,
        )
        weights = self.t.module(router.name, router.route, x)
        return self.t.module(f"{self.name}.experts", lambda y: self._multiply(y, weights), x)

    def _multiply(self, x: Tensor, weights: Tensor) -> Tensor:
        t, e, f, h, rows = self.t, self.e, self.experts.size, self.h, self.rows
        count, stream, row_bytes = self.experts.num, self.e * self.tokens * self.h, self.e * self.rows * self.h
        sorted_ids = t.tensor(8 * rows, WORKING)
        kept_permutation = self._kept((8 * rows,), ROUTES)
        kept_tokens = self._kept((8 * rows,), ROUTES)
        gathered = t.tensor(row_bytes, ROWS)
        kept_gathered = self._input_of_product(gathered)
        kept_weights = self._kept((self.w * rows,), ROUTES)
        counted = [t.tensor(4 * rows, WORKING), t.tensor(4 * count, WORKING)]
        kept_offsets = self._kept((4 * count,), ROUTES)
        product, kept_gate_up, kept_active = self._gated(e * rows * f)
        kept_product = self._input_of_product(product)
        down = t.tensor(row_bytes, ROWS)
        kept_down = [t.save(down)]
        t.drop(product)
        weighted = t.tensor(self.w * rows * h, WORKING)
        kept_inverse = self._kept((8 * rows,), ROUTES)
        ordered = t.tensor(self.w * rows * h, WORKING)
        t.drop(weighted)

        def backward(gradient: Storage) -> None:
            d_weights, d_down = self._backward_of_weighting(gradient, kept_inverse, kept_weights + kept_down)
            if self.trained:
                t.allocate(e * count * h * f, PARAMETER_GRADIENT)
            d_product = t.allocate(e * rows * f, BACKWARD)
            t.release(d_down)
            t.forget(*kept_product)
            if self.trained:
                t.parameter_gradient(f"{self.name}.experts.down_proj")
            d_up, d_active = t.allocate(e * rows * f, BACKWARD), t.allocate(e * rows * f, BACKWARD)
            t.release(d_product)
            t.forget(kept_active)
            d_gate = t.allocate(e * rows * f, BACKWARD)
            t.release(d_active)
            t.forget(kept_gate_up)
            both = t.allocate(2 * e * rows * f, BACKWARD)
            t.release(d_gate)
            t.release(d_up)
            if self.trained:
                t.allocate(2 * e * count * h * f, PARAMETER_GRADIENT)
            d_gathered = t.allocate(row_bytes, BACKWARD)
            t.release(both)
            t.forget(*kept_offsets, *kept_gathered)
            if self.trained:
                t.parameter_gradient(f"{self.name}.experts.gate_up_proj")
            t.give(weights, self._scattered(self.w * rows, d_weights, kept_permutation))
            t.give(x, self._scattered(stream, d_gathered, kept_tokens))

        t.node(ordered, backward)
        out = self._summed(ordered)
        t.drop(sorted_ids, *counted, ordered, gathered, down)
        return out

    def _summed(self, ordered: Tensor) -> Tensor:
        """The sum over each token's experts, in the type of the stream; nothing is saved for either."""
        t = self.t
        size = self.w * self.tokens * self.h
        summed = t.tensor(size, WORKING)

        def backward(gradient: Storage) -> None:
            spread = t.allocate(self.w * self.rows * self.h, BACKWARD)
            t.release(gradient)
            t.give(ordered, spread)

        t.node(summed, backward)
        if self.e == self.w:
            return summed
        out = t.tensor(self.e * self.tokens * self.h, WORKING)

        def backward_of_cast(gradient: Storage) -> None:
            wide = t.allocate(size, BACKWARD)
            t.release(gradient)
            t.give(summed, wide)

        t.node(out, backward_of_cast)
        t.drop(summed)
        return out

    def _gated(self, size: int) -> tuple[Tensor, Saved, Saved]:
        """``act(gate) * up`` of all rows (``size`` bytes), and what is kept of both halves and of the activation."""
        t = self.t
        both, active = t.tensor(2 * size, HIDDEN), t.tensor(size, HIDDEN)
        kept_both, kept_active = t.save(both), t.save(active)
        product = t.tensor(size, HIDDEN)
        t.drop(active, both)
        return product, kept_both, kept_active

    def _backward_of_weighting(
        self, gradient: Storage, kept_inverse: list[Saved], kept: list[Saved]
    ) -> tuple[Storage, Storage]:
        """Gradients of the weights and of the experts' outputs, through the permutation.

        A product's gradients have its operands' type and shape only afterwards (torch/csrc/autograd/engine.cpp,
        validate_outputs), and what was saved goes then; what torch's checkpoint recomputed is held by no saved
        variable (torch/utils/checkpoint.py, unpack_hook), and goes when the product's own function returns.
        """
        t, e, rows, wide = self.t, self.e, self.rows, self.w * self.rows * self.h
        ordered = self._scattered(wide, gradient, kept_inverse)
        for_weights, d_down = t.allocate(wide, BACKWARD), t.allocate(wide, BACKWARD)
        if t.recomputed:
            t.forget(*kept)  # it is the node's alone, and goes before its results are cast and summed
        if e != self.w:
            d_wide, d_down = d_down, t.allocate(e * rows * self.h, BACKWARD)
            t.release(d_wide)
        d_weights = t.allocate(self.w * rows, BACKWARD)
        t.release(for_weights)
        t.release(ordered)
        t.forget(*kept)
        return d_weights, d_down

    def _scattered(self, size: int, gradient: Storage, kept: list[Saved]) -> Storage:
        """index_backward: zeros, and index_put out of place into a second tensor."""
        t = self.t
        zeros, found = t.allocate(size, BACKWARD), t.allocate(size, BACKWARD)
        t.release(zeros)
        t.release(gradient)
        t.forget(*kept)
        return found

    def _input_of_product(self, x: Tensor) -> list[Saved]:
        """What a grouped product keeps of its input: nothing, where its weights are not trained (derivatives.yaml,
        _grouped_mm), but it counts as a save, of the weights."""
        return [self.t.save(x if self.trained else Tensor(Storage(0, x.storage.term, silent=True)))]

    def _kept(self, sizes: tuple[int, ...], term: Term) -> list[Saved]:
        """New tensors that only the backward pass keeps."""
        t = self.t
        kept = []
        for size in sizes:
            tensor = t.tensor(size, term)
            kept.append(t.save(tensor))
            t.drop(tensor)
        return kept
