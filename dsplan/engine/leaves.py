"""Leaves: modules that stage 3 fetches and releases whole, hooking nothing in them.

By default those are mixtures of experts (deepspeed/runtime/zero/leaf_module_config.py DEFAULT_LEAF_MODULE_CLASSES).
Source: DeepSpeed 0.19.8 runtime/zero/partitioned_param_coordinator.py; function names in the comments are that file's.
"""

from __future__ import annotations

from bisect import bisect_left
from functools import lru_cache

from dsplan.decoders.pieces import INNER, ROOT
from dsplan.engine.coordinator import NEVER, Coordinator, Module, Pass
from dsplan.kernels import Kernels
from dsplan.model import ModelShape
from dsplan.zero import ZeroConfig


def leaf_of(model: ModelShape) -> str:
    """The submodule of a block that is fetched whole, with nothing hooked in it (``Decoder.leaf``); empty: none."""
    return "" if model.decoder is None else model.decoder.leaf


@lru_cache(maxsize=64)
def leaf_parameters(model: ModelShape) -> frozenset[int]:
    """Indices of the parameters that are in a leaf."""
    leaf, prefix = leaf_of(model), model.block_prefix
    if not leaf:
        return frozenset()
    names = [parameter.name for parameter in model.parameters]
    return frozenset(index for index, name in enumerate(names) if owner_of(name, leaf, prefix).endswith(f".{leaf}"))


def owner_of(parameter: str, leaf: str, prefix: str = "") -> str:
    """The submodule at whose hooks ``parameter`` is fetched: its own, or the leaf of its block that it is in."""
    if leaf:
        before, found, _ = parameter[len(prefix) :].partition(f"{leaf}.")
        if found and (not before or before[:-1].isdigit()):
            return f"{prefix}{before}{leaf}"
    return parameter.rpartition(".")[0]


class LeafCoordinator(Coordinator):
    """A coordinator where some modules are leaves.

    When a module is released, every module of the trace is asked for its parameters as that one would be
    (__params_to_release): for a leaf, all that are anywhere below each; for another, its own, and of a leaf none.
    """

    def __init__(
        self, model: ModelShape, zero: ZeroConfig, world_size: int, element_bytes: int, kernels: Kernels
    ) -> None:
        super().__init__(model, zero, world_size, element_bytes, kernels)
        self._names = [parameter.name for parameter in model.parameters]
        self._leaf, self._prefix = f".{leaf_of(model)}", model.block_prefix
        #: By whether the module that is released is a leaf: uses of each parameter, and elements before each step.
        self._reuse: dict[bool, tuple[dict[int, list[int]], list[int]]] = {}

    def _is_leaf(self, module: Module) -> bool:
        return module.name.startswith(self._prefix) and module.name.endswith(self._leaf)

    def _below(self, name: str) -> list[int]:
        if name == ROOT:
            return list(range(len(self._names)))
        if name == INNER:
            return [index for index, each in enumerate(self._names) if not each.startswith("lm_head.")]
        return [index for index, each in enumerate(self._names) if each.startswith(f"{name}.")]

    def _complete_trace(self) -> None:
        super()._complete_trace()
        assert self._trace is not None
        modules = dict.fromkeys(self._trace) if self._leaf != "." else ()
        below = {module.name: self._below(module.name) for module in modules}
        for for_leaf in (False, True) if self._leaf != "." else (False,):
            uses: dict[int, list[int]] = {}
            before = [0]
            for step, module in enumerate(self._trace):
                counted = below[module.name] if for_leaf else () if self._is_leaf(module) else module.parameters
                before.append(before[-1] + sum([self.sizes[parameter] for parameter in counted]))
                for parameter in counted:
                    uses.setdefault(parameter, []).append(step)
            self._reuse[for_leaf] = uses, before

    def _releasable(self, module: Module, state: Pass) -> frozenset[int]:
        key = (id(module), state.step)
        found = self._release_cache.get(key)
        if found is None:
            uses, before = self._reuse[self._is_leaf(module)]

            def is_soon(parameter: int) -> bool:
                steps = uses.get(parameter, [])
                position = bisect_left(steps, state.step)
                if position == len(steps):
                    return False
                return before[steps[position]] - before[state.step] < self.zero.stage3_max_reuse_distance

            found = self._release_cache[key] = frozenset(
                parameter
                for parameter in module.parameters
                if parameter not in self.persistent
                and state.fetched_for.get(parameter, NEVER) <= state.step
                and not is_soon(parameter)
            )
        return found

    def _forget(self, module: Module, position: int) -> None:
        """Each of a leaf's weights by itself: it goes when its own product has run."""
        each = [(parameter, self.detached[parameter]) for parameter in module.saved if parameter in self.detached]
        super()._forget(module, position)
        if each and self._is_leaf(module):
            self.forgotten[-1:] = [(position, (parameter,), size) for parameter, size in each]
