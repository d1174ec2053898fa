"""Hooks: the submodules that stage 3 follows, and the order in which they are entered and left."""

from __future__ import annotations

from dataclasses import dataclass

#: (kind, module): one hook of one submodule; a module is its parameters' indices.
Mark = tuple[int, "Module"]
#: (rise, net) in device bytes at one hook.
Change = tuple[int, int]


@dataclass(slots=True, eq=False)  # not frozen: there are a dozen in every block, and they are made in every plan
class Module:
    """A submodule with hooks: its position in the model and the parameters it owns directly.

    ``saved``: those whose gathered storage autograd keeps from its forward to its backward. torch's linear layer saves
    ``weight.t()``, a tensor of its own over the storage, which outlives the release of the parameter; stage 3's own
    layer saves the parameter itself (deepspeed/runtime/zero/linear.py, ``memory_efficient_linear``).
    """

    name: str
    parameters: tuple[int, ...]
    saved: tuple[int, ...] = ()
