"""Expanded: where the walk takes one tensor for all that come and go one after the other, a trace takes all of them.

To a peak only the largest matters; to the allocator each does, for what it leaves cached and what it divides.
"""

from __future__ import annotations

from dsplan import buffers
from dsplan.engine.base import Engine
from dsplan.engine.stage0 import Stage0Plain, Stage0Unfused
from dsplan.engine.stage3 import Stage3
from dsplan.engine.stage12 import Stage12
from dsplan.kernels import Kernels
from dsplan.ledger import Ledger, Term
from dsplan.optimizers import backup_optimizer, device_optimizer
from dsplan.units import round_up

#: What the walk says while stage3.py create_reduce_and_remove_grad_hooks gathers each parameter.
HOOKING = "hooking each parameter"


class Expanded(Ledger):
    """A ledger that is asked before it takes a tensor (:meth:`before`) and told after it gave one back."""

    def __init__(self, kernels: Kernels) -> None:
        self._norms: tuple[int, ...] = ()
        self._norms_in_fp32: tuple[int, ...] = ()
        self._updated: dict[int, tuple[int, ...]] = {}
        self._hooked: tuple[int, ...] = ()
        self._hooked_later: tuple[int, ...] = ()
        self._overflow = 0
        self._checks = False
        super().__init__(kernels)

    def follow(self, engine: Engine) -> None:
        """Learn from ``engine`` what comes one after the other."""
        self._updated = _updated(engine)
        if isinstance(engine, Stage3):
            self._norms = tuple(8 * part for part in engine.parts)
            if not engine.offload_param:
                self._hooked = tuple(engine.e * round_up(numel, engine.run.world_size) for numel in engine.sizes)
        elif isinstance(engine, Stage12):
            self._norms = tuple(8 * size for part in engine.groups for size in part.slices)
        elif isinstance(engine, Stage0Unfused):
            self._norms_in_fp32 = tuple(4 * size for size in engine.sizes)

    def before(self, term: Term, size: int) -> bool:
        """What comes before a tensor that the walk takes; True: the tensor is one of a check that is taken apart."""
        if self.ignores(term):
            self._overflow = size  # the walk's first; :meth:`temporary` takes all, in their order
            return True
        if term is buffers.GATHERED and self.moment == HOOKING and self._hooked:
            sizes, self._hooked = self._hooked, ()
            place = sizes.index(size)
            for each in sizes[:place]:
                self.temporary(term, each)
            self._hooked_later = sizes[place + 1 :]
        return False

    def before_many(self, term: Term) -> None:
        """What comes before several tensors: their norms before fp32 copies of the gradients (get_weight_norm)."""
        if term is buffers.STEP_GRADIENT_LIST:
            for each in self._norms_in_fp32:
                super().temporary(term, each)

    def ignores(self, term: Term) -> bool:
        """Whether the walk's tensor is left to :meth:`temporary`."""
        return term is buffers.OVERFLOW and not self._checks

    def after(self, term: Term) -> None:
        """What follows a tensor that was given back."""
        if term is buffers.GATHERED and self._hooked_later:
            sizes, self._hooked_later = self._hooked_later, ()
            for each in sizes:
                self.temporary(term, each)

    def temporary(self, term: Term, size: int) -> None:
        """As the ledger's; where the walk takes one for all that come one after the other, all of them."""
        if term is buffers.NORM and self._phase_name == "step":
            for each in self._norms:  # get_grad_norm_direct: the gradient of every parameter in fp64
                super().temporary(term, each)
        elif term is buffers.OPTIMIZER_TEMPORARY and size in self._updated:
            for each in self._updated[size]:
                self.alloc(term, each)
            for each in self._updated[size]:
                self.free(term, each)
        elif term is buffers.OVERFLOW:  # stage3.py has_overflow: isinf is abs() == inf, then isnan
            self._checks = True
            self.alloc(term, size)
            super().temporary(term, self._overflow)
            self.free(term, size)
            super().temporary(term, size)
            self._checks = False
        else:
            super().temporary(term, size)


def _updated(engine: Engine) -> dict[int, tuple[int, ...]]:
    """Of the total of an update's temporaries the tensors: so many of each tensor that the optimizer updates, all of
    one operation before those of the next (torch/optim, _multi_tensor_adagrad, _multi_tensor_adam)."""
    plan = engine.run.plan
    tensors: list[tuple[int, ...]]
    if isinstance(engine, Stage3):
        partial = plan.zero.offloads_optimizer
        optimizer = backup_optimizer() if partial else device_optimizer(plan)
        tensors = [(4 * sum(engine.parts[index] for index in group),) for group in engine.sub_groups]
    elif isinstance(engine, Stage12):
        if plan.zero.offloads_optimizer:
            return {}
        optimizer, tensors = device_optimizer(plan), [(4 * part.size,) for part in engine.groups]
    elif isinstance(engine, Stage0Plain | Stage0Unfused):
        optimizer, tensors = device_optimizer(plan), [tuple(engine.bytes_each(4))]
    else:
        return {}
    times = optimizer.step_temporaries(foreach=engine.run.kernels.foreach_optimizers)
    return {times * sum(sizes): times * tuple(sizes) for sizes in tensors}
