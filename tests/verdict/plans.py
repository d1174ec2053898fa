"""Small plans whose traces take milliseconds."""

from __future__ import annotations

from dataclasses import replace

from dsplan.catalogue import accelerator, preset
from dsplan.kernels import Kernels, kernels_of
from dsplan.model import ModelShape
from dsplan.plan import Plan
from dsplan.strategies import standard_plans
from dsplan.verdict.operations import Trace
from dsplan.verdict.trace import trace
from dsplan.workload import Workload

MODEL = replace(preset("gpt2"), num_layers=3, vocab_size=5000, max_position_embeddings=256)
WORKLOAD = Workload(micro_batch_size=4, sequence_length=256)
KERNELS: Kernels = kernels_of(accelerator("h200"))
PLANS = {plan.name: plan for plan in standard_plans(MODEL, WORKLOAD, nvme_path="/nvme")}


def traced(
    name: str, *, ranks: int = 2, rank: int = 0, num_steps: int = 3, model: ModelShape = MODEL, plan: Plan | None = None
) -> Trace:
    return trace(model, plan or PLANS[name], ranks, KERNELS, rank=rank, num_steps=num_steps)
