"""Stage 0: no partitioning. fp32 uses the optimizer as it is, 16-bit precisions DeepSpeed's wrappers.

Source: DeepSpeed 0.19.8 runtime/engine.py, runtime/fp16/fused_optimizer.py (FP16_Optimizer, also for
bf16) and runtime/fp16/unfused_optimizer.py.
"""

from __future__ import annotations

from dsplan import buffers, states
from dsplan.engine.base import Engine, Run
from dsplan.optimizers import device_optimizer

#: engine.py MEMORY_OPT_ALLREDUCE_SIZE, in elements.
ALLREDUCE_ELEMENTS = 500_000_000


class Stage0(Engine):
    """Full gradients on every rank, all-reduced through flat copies at the accumulation boundary."""

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self.optimizer = device_optimizer(run.plan)
        self.total = run.sizes.sum
        self.step_temporaries = self.optimizer.step_temporaries(foreach=run.kernels.foreach_optimizers)
        self.follows_gradients = run.plan.workload.gradient_accumulation_steps > 1

    def end_backward(self, *, boundary: bool) -> None:
        if boundary:
            self.ledger.moment = "all-reduce of the gradients"
            self._all_reduce()

    def _all_reduce(self) -> None:
        # engine.py allreduce_no_retain: a bucket closes once it exceeds the limit.
        sizes = self.run.sizes
        first = before = 0
        while before + ALLREDUCE_ELEMENTS < sizes.sum:
            last, _, end = sizes.span(before + ALLREDUCE_ELEMENTS)
            self._flat_copy(end - before, last + 1 - first)
            before, first = end, last + 1
        self._flat_copy(sizes.sum - before, len(sizes) - first)

    def _flat_copy(self, elements: int, tensors: int) -> None:
        workload = self.run.plan.workload
        flat = self.e * elements if tensors > 1 else 0  # flattening a single tensor is a view
        self.ledger.alloc(buffers.ALLREDUCE_COPY, flat)
        if workload.communication_data_type is not None:
            self.ledger.temporary(buffers.COMMUNICATION_COPY, workload.communication_bytes * elements)
        self.ledger.free(buffers.ALLREDUCE_COPY, flat)

    def release_gradients(self) -> None:
        self.ledger.free_many(states.GRADIENTS, self.bytes_each(self.e))
        self._held = bytearray(len(self.sizes))

    def update(self, *, makes_states: bool) -> None:
        """The optimizer's step on parameters of their own shapes; ``makes_states``: it is the first."""
        if makes_states:
            self.per_parameter_states()
        self.temporaries()

    def per_parameter_states(self) -> None:
        for numel in self.sizes:
            for _ in range(self.optimizer.num_states):
                self.ledger.alloc(states.OPTIMIZER_STATES, 4 * numel)

    def temporaries(self) -> None:
        """Foreach optimizers work on all parameters at once, the others on one after the other."""
        elements = self.total if self.run.kernels.foreach_optimizers else max(self.sizes)
        self.ledger.temporary(buffers.OPTIMIZER_TEMPORARY, 4 * elements * self.step_temporaries)


class Stage0Plain(Stage0):
    """fp32: the optimizer works on the model's own parameters."""

    def initialise(self) -> None:
        self.build_on_host_and_move()
        if self.optimizer.states_at_construction:
            self.per_parameter_states()

    def step(self, *, first: bool) -> None:
        ledger = self.ledger
        ledger.moment = "optimizer update"
        self.update(makes_states=first and not self.optimizer.states_at_construction)
        self.release_gradients()


class Stage0Flat(Stage0):
    """fp16 or bf16 with FusedAdam: one flat model buffer and one flat fp32 master (FP16_Optimizer)."""

    def begins_again(self) -> bool:
        return 1 not in self._held

    def initialise(self) -> None:
        ledger, e, total = self.ledger, self.e, self.total
        self.build_on_host_and_move()
        ledger.moment = "flattening the parameters"
        ledger.alloc_many(buffers.FLATTEN, self.bytes_each(self.e))
        ledger.alloc(states.PARAMETERS, e * total)
        ledger.free_many(buffers.FLATTEN, self.bytes_each(self.e))
        ledger.free_many(states.PARAMETERS, self.bytes_each(self.e))
        ledger.moment = "fp32 master parameters"
        ledger.alloc(buffers.CAST, e * total)
        ledger.alloc(states.MASTER, 4 * total)
        ledger.free(buffers.CAST, e * total)
        ledger.moment = "first update with zero gradients"
        ledger.alloc(buffers.INIT_GRADIENT, 4 * total)
        for _ in range(self.optimizer.num_states):
            ledger.alloc(states.OPTIMIZER_STATES, 4 * total)
        ledger.free(buffers.INIT_GRADIENT, 4 * total)

    def step(self, *, first: bool) -> None:  # noqa: ARG002  # the states exist since initialisation
        ledger, total = self.ledger, self.total
        ledger.moment = "gradients to fp32"
        ledger.alloc_many(buffers.STEP_GRADIENT_LIST, self.bytes_each(4))
        ledger.alloc(buffers.STEP_GRADIENT, 4 * total)
        ledger.free_many(buffers.STEP_GRADIENT_LIST, self.bytes_each(4))
        self.release_gradients()
        ledger.moment = "optimizer update"
        ledger.free(buffers.STEP_GRADIENT, 4 * total)


class Stage0Unfused(Stage0):
    """fp16 or bf16 with any other optimizer: fp32 twins of every parameter (FP16_UnfusedOptimizer)."""

    def initialise(self) -> None:
        ledger = self.ledger
        self.build_on_host_and_move()
        if self.optimizer.states_at_construction:
            ledger.alloc_many(states.LEAKED_STATES, self.bytes_each(self.e))
        ledger.moment = "fp32 master parameters"
        for numel in self.sizes:
            ledger.alloc(buffers.CAST, self.e * numel)  # p.clone().float()
            ledger.alloc(states.MASTER, 4 * numel)
            ledger.free(buffers.CAST, self.e * numel)
        ledger.moment = "first update with zero gradients"
        ledger.alloc_many(buffers.INIT_GRADIENT, self.bytes_each(self.e))
        ledger.alloc_many(buffers.INIT_GRADIENT, self.bytes_each(4))
        self.update(makes_states=True)
        ledger.free_many(buffers.INIT_GRADIENT, self.bytes_each(self.e))
        ledger.free_many(buffers.INIT_GRADIENT, self.bytes_each(4))

    def step(self, *, first: bool) -> None:  # noqa: ARG002
        ledger = self.ledger
        ledger.moment = "gradients to fp32"
        ledger.alloc_many(buffers.STEP_GRADIENT_LIST, self.bytes_each(4))
        ledger.moment = "optimizer update"
        self.update(makes_states=False)
        ledger.free_many(buffers.STEP_GRADIENT_LIST, self.bytes_each(4))
        self.release_gradients()
