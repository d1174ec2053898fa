"""Parts of a pass: its hooks in order, those of alike blocks one after the other told once.

A pass of a deep model is a few hundred times the same: what its blocks' hooks are is known from one of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Hook(NamedTuple):
    """One hook of one submodule.

    Attributes:
        kind: as in :mod:`dsplan.tape`.
        name: the submodule's, within its block or whole.
        parameters: those that it owns, counted from the part's first.
        saved: those of them that autograd keeps (:class:`dsplan.engine.hooks.Module`).
    """

    kind: int
    name: str
    parameters: tuple[int, ...]
    saved: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class HookPart:
    """Hooks that come once, or those of alike blocks one after the other.

    Attributes:
        hooks: of one block, or all.
        saves: whether autograd has saved, when a module is left in its forward, what its backward needs.
        layers: the blocks in the order in which they run.
        first: index of the first parameter of layer 0; of hooks that come once, 0.
        stride: parameters of a block; of hooks that come once, 0.
    """

    hooks: tuple[Hook, ...]
    saves: bool
    layers: range = range(1)
    first: int = 0
    stride: int = 0

    @property
    def shift(self) -> int:
        """From a parameter of a block to that of the next block, in indices."""
        return self.layers.step * self.stride

    def base(self, number: int) -> int:
        """What the parameters of a block are counted from; blocks are counted in the order in which they run."""
        return self.first + self.layers[number] * self.stride

    def number_of(self, parameter: int) -> int:
        """The block that a parameter is in, counted in the order in which they run; out of range: it is in none."""
        return ((parameter - self.first) // self.stride - self.layers[0]) * self.layers.step
