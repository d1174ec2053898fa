"""Stage 3 of a model with leaves: their gradients wait, and their weights go one by one.

Source: DeepSpeed 0.19.8 runtime/zero/stage3.py create_reduce_and_remove_grad_hooks.
"""

from __future__ import annotations

from dsplan.engine.base import Run
from dsplan.engine.leaves import leaf_parameters
from dsplan.engine.stage3 import Stage3
from dsplan.engine.stage3_gradients import Stage3Gradients
from dsplan.tape import LEAVE_BACKWARD

#: (position, parameters, bytes) of weights that autograd alone holds.
Entry = tuple[int, tuple[int, ...], int]


class Stage3Leaves(Stage3):
    """Every gradient of a leaf is handed over once its backward has come through (reduce_leaf_module_grads)."""

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self._in_leaf = leaf_parameters(run.model)
        self._of_leaf: list[int] = []  # gradients that wait for the rest of their leaf
        self._entries: dict[int, Entry] = {}
        self._still_there: set[Entry] = set()

    def begin_forward(self) -> None:
        super().begin_forward()
        forgotten = self._gathering.passes[self._pass_index].forgotten
        self._entries = {parameter: entry for entry in forgotten for parameter in entry[1]}
        self._still_there = set(forgotten)

    def gradient(self, index: int) -> None:
        if index not in self._in_leaf:
            super().gradient(index)
            return
        if self._saved:
            self._forget_weights(index)
        self._of_leaf.append(index)

    def module(self, kind: int) -> None:
        if kind == LEAVE_BACKWARD and self._of_leaf:
            found, self._of_leaf = sorted(self._of_leaf), []
            for index in found:
                Stage3Gradients.gradient(self, index)
        super().module(kind)

    def _forget_weights(self, index: int) -> None:
        entry = self._entries.get(index)
        if entry is None or entry not in self._still_there or entry[0] < self._position:
            return
        self._still_there.discard(entry)
        position, _, size = entry
        if not size:  # one rank alone gathers nothing, and tells nobody
            return
        self._gathered(0, -size)
        self._forgotten[position] = self._forgotten.get(position, 0) + size
