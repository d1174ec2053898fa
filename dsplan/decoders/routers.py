"""Routers of mixtures: which experts a token goes to, and with which weights.

modeling_mixtral.py ``MixtralTopKRouter``, whose weights stay in fp32, modeling_qwen2_moe.py ``Qwen2MoeTopKRouter``,
modeling_deepseek_v2.py ``DeepseekV2TopkRouter`` and modeling_deepseek_v3.py ``DeepseekV3TopkRouter``, which multiply in
fp32.

Legend: e bytes of an element, T tokens, k experts per token, h width, E experts, G their groups.
"""

from __future__ import annotations

from dataclasses import dataclass

from dsplan import operators
from dsplan.decoders.linears import frozen_linear
from dsplan.families import Experts
from dsplan.families.decoder import SOFTMAX, WIDE_SIGMOID
from dsplan.ledger import Term
from dsplan.operators import BACKWARD, PARAMETER_GRADIENT, WORKING
from dsplan.tape import PRODUCT, Saved, Storage, Tape, Tensor

ROUTES = Term("routes", "4·T·E, and a few times 8·T·k", "integrations/moe.py: probabilities, indices, permutations")
ROUTER_INPUT = Term("router input and weight in fp32", "4·T·h, 4·E·h", "modeling_deepseek_v3.py: F.linear in fp32")


@dataclass(frozen=True, kw_only=True)
class Router:
    """One router on a tape.

    Attributes:
        weight_bytes: of an element of the weights that a token's experts have.
        held: what the mixture's names hold until it returns; the router adds its logits and weights.
        trained: whether its own weight is.
    """

    t: Tape
    experts: Experts
    tokens: int
    width: int
    element_bytes: int
    weight_bytes: int
    held: list[Tensor]
    trained: bool = True

    @property
    def name(self) -> str:
        """The module, by its name within the block."""
        return f"{self.experts.module}.gate"

    @property
    def rows(self) -> int:
        """Rows that the experts multiply, T·k: a token once for each of its experts."""
        return self.tokens * self.experts.per_token

    @property
    def wide(self) -> int:
        """Bytes of scores of all experts in fp32: 4·T·E."""
        return 4 * self.tokens * self.experts.num

    def route(self, x: Tensor) -> Tensor:
        """The weights of each token's experts."""
        if self.experts.router == SOFTMAX:
            return self._softmax(x)
        logits = self._wide_product(x)
        self.held.append(logits)
        return self._sigmoid(logits) if self.experts.router == WIDE_SIGMOID else self._wide_softmax(logits)

    # Softmax over logits of the model's type.

    def _softmax(self, x: Tensor) -> Tensor:
        """Softmax in fp32, the k highest, divided by their sum or not, and cast where their weights are not wide."""
        t, e, rows, wide = self.t, self.element_bytes, self.rows, self.wide
        scores = e * self.tokens * self.experts.num
        if self.trained:
            weight = e * self.width * self.experts.num
            logits = operators.linear(t, x, scores, WORKING, self.name, weight, 0, element_bytes=e)
        else:
            logits = frozen_linear(t, x, scores, WORKING, self.name, own=t.kernels.zero3_linear)
        self.held.append(logits)
        upcast = t.tensor(wide, WORKING) if e != 4 else t.view(logits.storage)
        probabilities = t.tensor(wide, ROUTES)
        kept = [t.save(probabilities)]
        t.drop(upcast, probabilities)
        values = None if self.experts.normalised else t.tensor(4 * rows, WORKING)
        if values is None:
            top = t.tensor(self.weight_bytes * rows, ROUTES)
            # The indices, the sums, the values before the division.
            kept += [self._kept(size) for size in (8 * rows, 4 * self.tokens, 4 * rows)]
        else:
            kept.append(self._kept(8 * rows))
            top = t.view(values.storage) if self.weight_bytes == 4 else t.tensor(self.weight_bytes * rows, ROUTES)
            t.drop(values)
        self.held.append(top)

        def backward(gradient: Storage) -> None:
            if self.weight_bytes != 4:
                upcast = t.allocate(4 * rows, BACKWARD)
                t.release(gradient)
                gradient = upcast
            if self.experts.normalised:
                gradient = self._backward_of_division(gradient)
            d_logits = self._backward_of_choice(gradient, kept)
            if e != 4:
                d_wide, d_logits = d_logits, t.allocate(scores, BACKWARD)
                t.release(d_wide)
            t.give(logits, d_logits)

        return t.node(top, backward)

    # DeepSeek's.

    def _wide_product(self, x: Tensor) -> Tensor:
        """``F.linear(x.float(), weight.float())``: both copies are saved."""
        t, e, count = self.t, self.element_bytes, self.experts.num
        casts = e != 4
        inputs, weights = 4 * self.tokens * self.width, 4 * count * self.width
        copies = [t.tensor(size, ROUTER_INPUT) for size in (inputs, weights)] if casts else [t.view(x.storage)]
        # Of a weight that is not trained torch saves the copy alone, stage 3's own function both.
        saves_input = self.trained or t.kernels.zero3_linear
        kept = [t.save(copy) for copy in (copies if saves_input else copies[1:])]
        logits = t.tensor(self.wide, ROUTES)
        t.drop(*copies)

        def backward(gradient: Storage) -> None:
            d_weight = t.allocate(weights, BACKWARD if casts else PARAMETER_GRADIENT) if self.trained else None
            t.mark(PRODUCT, self.name)
            dx = t.allocate(inputs, BACKWARD)
            t.release(gradient)
            t.forget(*reversed(kept))
            if d_weight is not None:
                if casts:
                    t.allocate(e * count * self.width, PARAMETER_GRADIENT)
                    t.release(d_weight)
                t.parameter_gradient(f"{self.name}.weight")
            if casts:
                d_wide, dx = dx, t.allocate(e * self.tokens * self.width, BACKWARD)
                t.release(d_wide)
            t.give(x, dx)

        return t.node(logits, backward)

    def _wide_softmax(self, logits: Tensor) -> Tensor:
        """DeepSeek V2: softmax, where experts are chosen by groups with the other groups' scores struck out."""
        t, rows, wide, groups = self.t, self.rows, self.wide, 4 * self.tokens * self.experts.groups
        scores = t.tensor(wide, ROUTES)
        kept = [t.save(scores)]
        mask: list[Saved] = []
        if groups:
            scores, mask = self._limited(scores)
        values = t.tensor(4 * rows, WORKING)
        kept.insert(0, self._kept(8 * rows))
        weights = t.tensor(4 * rows, ROUTES)
        t.drop(values, scores)
        self.held.append(weights)

        def backward(gradient: Storage) -> None:
            t.give(logits, self._backward_of_choice(self._scaled(gradient), kept, mask))

        return t.node(weights, backward)

    def _limited(self, scores: Tensor) -> tuple[Tensor, list[Saved]]:
        """``scores.masked_fill(~mask, 0)``, where the mask has the groups with the highest scores; it is saved."""
        t = self.t
        groups = 4 * self.tokens * self.experts.groups
        found = [t.tensor(groups, WORKING), t.tensor(2 * groups, WORKING)]  # max: values and indices
        t.drop(found.pop())
        found += [t.tensor(groups, WORKING), t.tensor(self.wide, WORKING)]  # the groups' mask, and the experts'
        is_chosen = t.tensor(self.wide // 4, WORKING)
        is_struck = t.tensor(self.wide // 4, ROUTES)
        t.drop(is_chosen)
        kept = [t.save(is_struck)]
        limited = t.tensor(self.wide, WORKING)
        t.drop(is_struck, scores, *found)
        return limited, kept

    def _sigmoid(self, logits: Tensor) -> Tensor:
        """DeepSeek V3: sigmoid; experts are chosen with a bias and by groups, and their scores gathered."""
        t, rows, wide = self.t, self.rows, self.wide
        scores = t.tensor(wide, ROUTES)
        kept = [t.save(scores)]
        indices = self._chosen()
        kept.append(t.save(indices))
        top = t.tensor(4 * rows, WORKING)
        kept_sums: list[Saved] = []
        if self.experts.normalised:
            plain = t.tensor(4 * self.tokens, WORKING)
            sums = t.tensor(4 * self.tokens, ROUTES)
            t.drop(plain)
            kept_sums = [t.save(sums)]
            before = t.tensor(4 * rows, ROUTES)  # the values before the division, which is in place
            kept_sums.append(t.save(before))
            t.drop(sums, before)
        weights = t.tensor(4 * rows, ROUTES)
        t.drop(top, scores, indices)
        self.held.append(weights)

        def backward(gradient: Storage) -> None:
            gradient = self._scaled(gradient)
            if self.experts.normalised:
                gradient = self._backward_of_division(gradient)
                t.forget(*kept_sums)
            t.give(logits, self._backward_of_choice(gradient, kept))

        return t.node(weights, backward)

    def _chosen(self) -> Tensor:
        """Indices of the experts of each token (8·T·k): of the best groups, the best."""
        t, groups, wide = self.t, 4 * self.tokens * self.experts.groups, self.wide
        biased = t.tensor(wide, WORKING)
        pairs = [t.tensor(2 * groups, WORKING), t.tensor(4 * groups, WORKING)]  # the two best of each group
        sums = t.tensor(groups, WORKING)
        t.drop(pairs[0])
        masks = [t.tensor(groups, WORKING), t.tensor(wide, WORKING), t.tensor(wide // 4, WORKING)]
        limited = t.tensor(wide, WORKING)
        t.drop(biased)
        values = t.tensor(4 * self.rows, WORKING)
        indices = t.tensor(8 * self.rows, ROUTES)
        t.drop(values, pairs[1], sums, *masks, limited)
        return indices

    # Pieces of their backward passes.

    def _scaled(self, gradient: Storage) -> Storage:
        """Through the product with a number."""
        scaled = self.t.allocate(4 * self.rows, BACKWARD)
        self.t.release(gradient)
        return scaled

    def _backward_of_division(self, gradient: Storage) -> Storage:
        """Through ``values / values.sum(-1)``; releases ``gradient``."""
        t, size = self.t, 4 * self.rows
        parts = [t.allocate(size, BACKWARD) for _ in range(4)]
        for part in parts[1:]:
            t.release(part)
        d_top = t.allocate(size, BACKWARD)
        t.release(parts[0])
        t.release(gradient)
        return d_top

    def _backward_of_choice(self, d_top: Storage, kept: list[Saved], mask: list[Saved] | None = None) -> Storage:
        """The gradient of all experts' logits: scattered into zeros, then through softmax or sigmoid."""
        t = self.t
        zeros, d_scores = t.allocate(self.wide, BACKWARD), t.allocate(self.wide, BACKWARD)
        t.release(zeros)
        t.release(d_top)
        if mask:
            d_limited, d_scores = d_scores, t.allocate(self.wide, BACKWARD)
            t.release(d_limited)
            t.forget(*mask)
        d_logits = t.allocate(self.wide, BACKWARD)
        t.release(d_scores)
        t.forget(*kept)
        return d_logits

    def _kept(self, size: int) -> Saved:
        """A new tensor that only the backward pass keeps."""
        tensor = self.t.tensor(size, ROUTES)
        kept = self.t.save(tensor)
        self.t.drop(tensor)
        return kept
