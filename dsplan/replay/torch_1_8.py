"""torch's DDP as it was in early 2021: gradients that stay, and an optimizer that takes one tensor at a time.

Source: torch v1.8 torch/optim/optimizer.py (zero_grad, set_to_none=False by default, until #92731 in 2.0) and
torch/optim/_functional.py (adamw, one tensor after the other; the foreach form became the default on CUDA in 2.0).
"""

from __future__ import annotations

from dsplan.engine.base import Run
from dsplan.engine.ddp import Ddp

RULES = {
    "optimizer": "the optimizer updates one tensor after the other; today all at once, with temporaries of all",
    "gradients": "zero_grad clears the gradients in place; today it frees them between steps",
}


class OldDdp(Ddp):
    """DDP under the rules named in ``rules``."""

    def __init__(self, run: Run, rules: frozenset[str]) -> None:
        self.frees_gradients = "gradients" not in rules
        super().__init__(run)
        self.foreach = self.foreach and "optimizer" not in rules
