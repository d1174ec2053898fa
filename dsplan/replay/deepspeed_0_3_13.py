"""Stage 3 as DeepSpeed 0.3.13 had it: an engine whose old rules can be switched on one by one; and the old model's.

Source: DeepSpeed v0.3.13 (March 2021) runtime/zero/stage3.py; function names in the comments are that file's. Each
rule replaces one of ``dsplan.engine.stage3``'s, so that the walks before and after it say what it is worth.
"""

from __future__ import annotations

from dsplan import buffers, states
from dsplan.engine.base import Run
from dsplan.engine.stage3 import Stage3
from dsplan.engine.stage3_gradients import NORM_PART_ELEMENTS
from dsplan.engine.stage3_swapping import sub_groups
from dsplan.ledger import Term
from dsplan.optimizers import device_optimizer
from dsplan.replay.gathering_0_3_13 import old_gather_steps
from dsplan.replay.projections import apart, together
from dsplan.tape import ENTER_BACKWARD
from dsplan.units import ceil_div

#: The rules that have changed since, in the order in which they are switched on; what each was, in a few words.
RULES = {
    "prefetching": "one prefetch on its way at a time, and a single rank gathers too; today each submodule adds one up "
    "to max_live_parameters, and what it skips is kept",
    "autograd": "autograd keeps every gathered weight from forward to backward, and the backward gathers it again",
    "buckets": "reduce buckets (two with overlap_comm) exist from backward to its end; today one stays for good",
    "gradients": "the gradient partition appears in the backward pass and dies in the step; today it stays for good",
    "staging": "with offload, two gradient buffers of the largest partition stay on the device",
    "projections": "the benchmark's model has query, key and value apart, which are gathered and reduced one by one; "
    "dsplan's has them in one layer",
}

STAGING = Term(
    "gradient staging of 0.3.13",
    "2·e·⌈n_max/N⌉",
    "v0.3.13 stage3.py temp_grad_buffer_for_gpu_offload, temp_grad_gpu_buffer",
)


class OldStage3(Stage3):
    """One rank of stage 3 under the rules named in ``rules``; one micro batch a step."""

    def __init__(self, run: Run, rules: frozenset[str]) -> None:
        super().__init__(run)
        self.rules = rules
        separated = apart(run.model) if "projections" in rules else together(run.model)
        self._separated = separated
        if "prefetching" in rules:
            self.gathers = old_gather_steps(
                run.model,
                run.plan.zero,
                run.world_size,
                run.plan.workload,
                run.kernels,
                autograd_keeps="autograd" in rules,
                separated=separated,
            )
            self.num_steps = len(self.gathers)
        self.num_buckets = 2 if self.zero.overlaps_communication else 1
        self._buckets_exist = False
        self._partition_exists = False
        self._waiting: list[int] = []  # previous_reduced_grads: reduced, not yet moved to their owner's partition

    def _divide(self, sizes: tuple[int, ...]) -> None:
        """The partitions of these parameters, as Stage3.__init__ makes them of the model's."""
        self.sizes = sizes
        self.parts = [ceil_div(numel, self.run.world_size) for numel in sizes]
        self.total = sum(self.parts)
        self.sub_groups = sub_groups(self.parts, self.zero.sub_group_size)
        self.on_device = [not self.offload] * len(self.sub_groups)

    def gradient(self, index: int) -> None:
        """A gradient arrives: of a parameter that was several then, the gradient of each."""
        for piece in self._separated.pieces[index]:
            super().gradient(piece)

    def initialise(self) -> None:
        """``deepspeed.initialize``: buckets and gradients came later, and staging buffers were made at once."""
        super().initialise()  # with the model's own parameters: their partitions come to the same
        self._divide(self._separated.sizes)
        ledger, e = self.ledger, self.e
        if "buckets" in self.rules:
            ledger.free(buffers.REDUCE_BUCKET, e * self.zero.reduce_bucket_size)
        if "gradients" in self.rules and not self.offload:
            ledger.free(states.GRADIENT_PARTITION, e * self.total)
        if "staging" in self.rules and self.offload:
            for _ in range(2):
                ledger.alloc(STAGING, e * max(self.parts))

    def module(self, kind: int) -> None:
        """Entering or leaving a module; ``backward()`` makes the buckets before autograd starts."""
        if kind == ENTER_BACKWARD and "buckets" in self.rules and not self._buckets_exist:
            # backward() makes them before autograd starts.
            self._buckets_exist = True
            for _ in range(self.num_buckets):
                self.ledger.alloc(buffers.REDUCE_BUCKET, self.e * self.zero.reduce_bucket_size)
        super().module(kind)

    def _reduce_bucket(self) -> None:
        """reduce_ipg_grads: the bucket before this one moves to its partition, then this one is reduced in place."""
        if "gradients" not in self.rules:
            super()._reduce_bucket()
            return
        bucket, self._bucket = self._bucket, []
        self._bucket_elements = 0
        if not bucket:
            return
        self._move_waiting()
        self._waiting = bucket

    def _move_waiting(self) -> None:
        """partition_previous_reduced_grads."""
        ledger, e = self.ledger, self.e
        if self._waiting and not self.offload and not self._partition_exists:
            self._partition_exists = True
            ledger.alloc(states.GRADIENT_PARTITION, e * self.total)
        for index in self._waiting:
            if self.offload:
                part = self.parts[index]
                ledger.temporary(buffers.NORM, 8 * min(part, NORM_PART_ELEMENTS))
                ledger.temporary(buffers.OFFLOAD_CAST, 4 * part)
            if self.sizes[index] > self.zero.reduce_bucket_size:
                ledger.free(states.GRADIENTS, e * self.sizes[index])
        self._waiting = []

    def end_backward(self, *, boundary: bool) -> None:
        """The last bucket moves, and the buckets go."""
        super().end_backward(boundary=boundary)
        if "gradients" in self.rules:
            self._move_waiting()
        if self._buckets_exist:
            self._buckets_exist = False
            for _ in range(self.num_buckets):
                self.ledger.free(buffers.REDUCE_BUCKET, self.e * self.zero.reduce_bucket_size)

    def step(self, *, first: bool) -> None:
        """One update of the optimizer, sub-group by sub-group."""
        if "gradients" not in self.rules or self.offload:
            super().step(first=first)
            return
        ledger, e, gathering = self.ledger, self.e, self._gathering
        self._gathered(0, gathering.released)
        ledger.moment = "gradient norm"
        ledger.temporary(buffers.NORM, 8 * max(self.parts))
        ledger.moment = "flattening the gradient partition"
        for index, group in enumerate(self.sub_groups):
            elements = sum(self.parts[i] for i in group)
            ledger.alloc(buffers.FLAT_GRADIENT, e * elements)
            ledger.alloc(buffers.STEP_GRADIENT, 4 * elements)
            ledger.free(buffers.FLAT_GRADIENT, e * elements)
            if index == len(self.sub_groups) - 1:
                ledger.free(states.GRADIENT_PARTITION, e * self.total)
                self._partition_exists = False
            if first:
                self._states(states.OPTIMIZER_STATES, device_optimizer(self.run.plan), elements)
            ledger.free(buffers.STEP_GRADIENT, 4 * elements)
        ledger.moment = "gathering the persistent parameters"
        self._gathered(max(gathering.persistent, 0), gathering.persistent)
        self._step_index += 1
        self._pass_index = 0
