"""The loss as transformers computes it: logits in fp32, labels shifted by one (loss/loss_utils.py ForCausalLMLoss)."""

from __future__ import annotations

from dsplan.ledger import Term
from dsplan.operators import BACKWARD, WORKING
from dsplan.tape import Storage, Tape, Tensor

LABELS = Term("shifted labels", "8·b·s", "loss_utils.py ForCausalLMLoss: pad, [..., 1:].contiguous()")
WIDE_LOGITS = Term("logits in fp32 and log-probabilities", "4·b·s·V each", "loss_utils.py logits.float(); _log_softmax")


def causal_lm_loss(t: Tape, logits: Tensor, *, element_bytes: int, num_tokens: int, batch: int, scalar: Term) -> Tensor:
    """``cross_entropy(logits.float(), shifted labels)``: keeps the log-probabilities in fp32 and the labels."""
    casts = element_bytes != 4
    wide = logits.storage.size * 4 // element_bytes
    if casts:
        upcast = t.tensor(wide, WIDE_LOGITS)

        def backward_cast(gradient: Storage) -> None:
            d_logits = t.allocate(logits.storage.size, BACKWARD)
            t.release(gradient)
            t.give(logits, d_logits)

        t.node(upcast, backward_cast)
    else:
        upcast = logits
    padded = t.tensor(8 * (num_tokens + batch), WORKING)
    labels = t.tensor(8 * num_tokens, LABELS)
    log_probabilities = t.tensor(wide, WIDE_LOGITS)
    kept = [t.save(log_probabilities)]
    loss = t.tensor(4, scalar)
    weight = t.tensor(4, scalar)
    kept_weight = [t.save(weight), t.save(labels)]
    t.drop(weight, log_probabilities, labels)
    if casts:
        t.drop(upcast)
    t.drop(padded)

    def backward(gradient: Storage) -> None:
        d_log = t.allocate(wide, BACKWARD)
        t.release(gradient)
        t.forget(*kept_weight)
        d_wide = t.allocate(wide, BACKWARD)
        t.release(d_log)
        t.forget(*kept)
        t.give(upcast, d_wide)

    return t.node(loss, backward)
