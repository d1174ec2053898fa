"""Masks of attention that all blocks of a decoder share: which there are, and what has them until when.

Legend: e bytes of an element, b micro batch, s sequence, a heads.
"""

from __future__ import annotations

from dataclasses import dataclass

from dsplan.decoders.attention import BIAS_ALIGNMENT
from dsplan.decoders.classes import BLOOM, FALCON
from dsplan.decoders.kinds import Kind
from dsplan.families import Decoder
from dsplan.ledger import Term

MASK = Term("causal mask", "e·b·s²", "masking_utils.py eager_mask: torch.where makes a row for each sample")
ALIBI = Term("ALiBi", "e·b·a·s", "modeling_bloom.py BloomModel.forward: slopes times positions, for all blocks")


@dataclass(frozen=True, slots=True, kw_only=True)
class Masks:
    """The masks of one decoder for one workload; each is (bytes, what it counts as).

    Attributes:
        kinds: of its layers.
        eager: whether attention is of elementary operators.
        checkpointed: whether blocks are run a second time.
        row: bytes of a row of a mask for all samples, e·b·s.
        length: tokens of a sample, s.
    """

    decoder: Decoder
    kinds: tuple[Kind, ...]
    eager: bool
    checkpointed: bool
    row: int
    length: int

    @property
    def shared(self) -> tuple[tuple[int, Term], ...]:
        """All: of eager attention one for each width of window.

        Falcon's, and that of a window, is of truth values; BLOOM has ALiBi beside its own.
        """
        d, alibi = self.decoder, (self.row * self.decoder.num_attention_heads, ALIBI)
        if has_alibi(d):
            return alibi, self._with_alibi
        if (d.causal_lm == FALCON and not self.eager) or any(kind.window is not None for kind in self.kinds):
            return ((self.length**2, MASK),)
        mask = (self.row * self.length, MASK)
        if d.causal_lm == BLOOM:
            return alibi, mask
        return (mask,) * len(set(d.windows)) if self.eager else ()

    @property
    def saved(self) -> tuple[tuple[int, Term], ...]:
        """Those of :attr:`shared` that live until the backward pass is done: checkpointed blocks keep them for their
        second run, and attention saves one that it is given as it is."""
        if self.checkpointed:
            return self.shared
        return (self._with_alibi,) if has_alibi(self.decoder) and self.length % BIAS_ALIGNMENT == 0 else ()

    @property
    def named(self) -> tuple[tuple[int, Term], ...]:
        """Those that only the model's own names have, while its blocks run."""
        return tuple(each for each in self.shared if each not in self.saved)

    @property
    def _with_alibi(self) -> tuple[int, Term]:
        """Falcon's mask with ALiBi in it, rows for each head."""
        return self.row * self.decoder.num_attention_heads * self.length, MASK


def has_alibi(decoder: Decoder) -> bool:
    """Whether it is Falcon whose mask has ALiBi in it."""
    return decoder.causal_lm == FALCON and not decoder.rotary_size
