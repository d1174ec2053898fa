"""Stage 1 in bf16 with gradients accumulated in fp32: DeepSpeed's BF16_Optimizer.

Every rank holds the fp32 gradients of the whole model beside its partition of masters and states.

Source: DeepSpeed 0.19.8 runtime/bf16_optimizer.py (BF16_Optimizer), chosen in runtime/engine.py
(_do_optimizer_sanity_check); function names in the comments are those files'.

Legend: e bytes of a model element, c of one while it is reduced, Ψ parameters, Ψp padded to 2·N, P = Ψp / N.
"""

from __future__ import annotations

from dsplan import buffers, states
from dsplan.engine.base import Engine, Run
from dsplan.errors import InputError
from dsplan.optimizers import device_optimizer
from dsplan.partition import padded_elements


class Bf16(Engine):
    """All ranks are alike. Not with ``bf16.immediate_grad_update``, which is off by default.

    Raises InputError for an optimizer whose states are made before its parameters are partitioned.
    """

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self.optimizer = device_optimizer(run.plan)
        if self.optimizer.states_at_construction:
            raise InputError(
                f"data_types.grad_accum_dtype: fp32 at stage 1 in bf16 does not go with {self.optimizer.name}, whose "
                "states BF16_Optimizer loses; use another optimizer or stage 2"
            )
        self.padded = padded_elements(run.model, run.world_size)
        self.part = self.padded // run.world_size
        self.c = run.plan.workload.communication_bytes
        self.follows_gradients = run.plan.workload.gradient_accumulation_steps > 1

    def initialise(self) -> None:
        ledger, e = self.ledger, self.e
        self.build_on_host_and_move()
        ledger.moment = "flattening the parameters"
        ledger.alloc(states.PARAMETERS, e * self.padded)
        ledger.free_many(states.PARAMETERS, self.bytes_each(e))
        ledger.moment = "fp32 master parameters"
        ledger.alloc(buffers.CAST, e * self.part)
        ledger.alloc(states.MASTER, 4 * self.part)
        ledger.free(buffers.CAST, e * self.part)
        ledger.moment = "fp32 gradients"
        ledger.alloc(states.WHOLE_GRADIENTS, 4 * self.padded)

    def end_backward(self, *, boundary: bool) -> None:
        ledger = self.ledger
        ledger.moment = "gradients to fp32"  # update_hp_grads: one after the other
        ledger.temporary(buffers.ACCUMULATION_COPY, 4 * max(self.sizes))
        if boundary and self.c != 4:
            # buffered_allreduce_fallback: the fp32 gradients are one tensor, cast to the communication's dtype.
            ledger.moment = "all-reduce of the gradients"
            ledger.temporary(buffers.ALLREDUCE_COPY, self.c * self.padded)

    def step(self, *, first: bool) -> None:
        ledger, size = self.ledger, 4 * self.part
        ledger.moment = "optimizer update"  # its gradient is a view of the whole model's
        if first:
            for _ in range(self.optimizer.num_states):
                ledger.alloc(states.OPTIMIZER_STATES, size)
        temporaries = self.optimizer.step_temporaries(foreach=self.run.kernels.foreach_optimizers)
        ledger.temporary(buffers.OPTIMIZER_TEMPORARY, size * temporaries)
        ledger.free_many(states.GRADIENTS, self.bytes_each(self.e))  # engine.py _take_model_step: zero_grad
        self._held = bytearray(len(self.sizes))
