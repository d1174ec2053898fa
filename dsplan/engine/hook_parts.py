"""Parts of a pass: its hooks in order, those of alike blocks one after the other told once.

A pass of a deep model is a few hundred times the same: what its blocks' hooks are is known from one of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from dsplan.engine.hooks import Mark, Module


class AlikeModules:
    """The submodules of alike blocks, made when they are asked for, once for forward and backward.

    Args:
        first: index of the first block's first parameter.
        stride: parameters of a block.
        modules: (name after the block's, parameters, those that autograd keeps) of each, in indices within the block.
        prefix: what comes before the number of a block.
    """

    def __init__(
        self,
        first: int,
        stride: int,
        modules: Sequence[tuple[str, tuple[int, ...], tuple[int, ...]]],
        prefix: str,
    ) -> None:
        self.first = first
        self.stride = stride
        self._modules = modules
        self._prefix = prefix
        self._made: dict[int, list[Module]] = {}

    def of_layer(self, layer: int) -> list[Module]:
        """Those of one block."""
        found = self._made.get(layer)
        if found is None:
            base, block = self.first + layer * self.stride, f"{self._prefix}{layer}"
            found = self._made[layer] = [
                Module(
                    f"{block}.{name}" if name else block,
                    tuple([base + index for index in parameters]),
                    tuple([base + index for index in saved]),
                )
                for name, parameters, saved in self._modules
            ]
        return found


@dataclass(frozen=True, slots=True, eq=False)
class HookPart:
    """Hooks that come once, or those of alike blocks one after the other.

    Attributes:
        marks: of the first block, or all.
        saves: whether autograd has saved, when a module is left in its forward, what its backward needs.
        layers: the blocks in the order in which they run.
        modules: of the blocks.
        places: of each mark which of its block's modules it is.
    """

    marks: list[Mark]
    saves: bool
    layers: range = range(1)
    modules: AlikeModules | None = None
    places: tuple[int, ...] = field(default=())

    @property
    def shift(self) -> int:
        """From a parameter of a block to that of the next block, in indices."""
        return self.layers.step * self.modules.stride if self.modules is not None else 0

    def marks_of(self, number: int) -> list[Mark]:
        """The hooks of one block, counted in the order in which they run."""
        if self.modules is None or number == 0:
            return self.marks
        modules = self.modules.of_layer(self.layers[number])
        return [(kind, modules[place]) for (kind, _), place in zip(self.marks, self.places, strict=True)]
