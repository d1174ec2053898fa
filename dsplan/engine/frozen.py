"""Frozen: stage 3's coordinator of a model of which some parameters are not trained.

They are partitioned, gathered and released as all others. Under activation checkpointing there is one difference: what
a block's second run fetches of them also belongs to the submodule whose backward pass was entered last, and stays until
that one's is over.

The first matrix of an adapter is fetched with the adapted layer from its first forward pass on, in which it becomes
known as an external parameter of it (:func:`dsplan.engine.gathering.marks_and_saving`).

Source: DeepSpeed 0.19.8 runtime/zero/partitioned_param_coordinator.py (_fetch_sub_module_impl,
update_recompute_parameters, release_sub_module, release_backward_leftovers).
"""

from __future__ import annotations

from collections.abc import Iterable

from dsplan.engine.coordinator import Pass
from dsplan.engine.hooks import Change, Module
from dsplan.engine.leaves import LeafCoordinator
from dsplan.families.adapters import FIRST_MATRIX
from dsplan.kernels import Kernels
from dsplan.model import ModelShape
from dsplan.tape import ENTER, LEAVE_BACKWARD
from dsplan.zero import ZeroConfig


class FrozenCoordinator(LeafCoordinator):
    """A coordinator that knows which parameters are not trained."""

    def __init__(
        self, model: ModelShape, zero: ZeroConfig, world_size: int, element_bytes: int, kernels: Kernels
    ) -> None:
        super().__init__(model, zero, world_size, element_bytes, kernels)
        self._frozen = frozenset([index for index, each in enumerate(model.parameters) if not each.trained])
        #: Adapted layers that have not run yet, by their names.
        self._unknown = {
            parameter.name.removesuffix(f"{FIRST_MATRIX}.weight")
            for parameter in model.parameters
            if parameter.name.endswith(f"{FIRST_MATRIX}.weight")
        }
        #: ds_recompute_parameters, by the submodule whose backward pass they wait for.
        self._recomputed: dict[int, set[int]] = {}

    def _fetch(self, module: Module, state: Pass) -> None:
        if module.name in self._unknown:  # the matrix is gathered once its type is asked for
            self._unknown.remove(module.name)
            state.step += 1
            return
        super()._fetch(module, state)
        if state.kind != ENTER or not self._in_backward:
            return
        owner = next(reversed(self._in_backward))
        for parameter in self._frozen.intersection(module.parameters):
            self._recomputed.setdefault(owner, set()).add(parameter)
            self.active[parameter].add(owner)

    def _release_module(self, module: Module, state: Pass) -> None:
        if state.kind == LEAVE_BACKWARD:
            held = self._recomputed.pop(id(module), ())
            for parameter in self._given_up(held, id(module)):
                state.available_elements -= self.sizes[parameter]
                self._release(parameter)
        super()._release_module(module, state)

    def leftovers(self) -> Change:
        for owner, held in self._recomputed.items():
            for parameter in held:
                self.active[parameter].discard(owner)
        rise, net = super().leftovers()
        before = self.level
        for held in self._recomputed.values():
            for parameter in held - self.persistent:
                self._release(parameter)
        self._recomputed.clear()
        return rise, net + self.level - before

    def _given_up(self, held: Iterable[int], owner: int) -> list[int]:
        """Of what ``owner`` held, that which is partitioned once nobody else uses it."""
        found = []
        for parameter in held:
            self.active[parameter].discard(owner)
            if parameter not in self.persistent and self.status[parameter] == 2 and not self.active[parameter]:
                found.append(parameter)
        return found
