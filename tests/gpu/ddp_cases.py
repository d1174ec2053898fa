"""torch's DDP on one, two and four cards, and its speed beside ZeRO's: sets ``ddp`` and ``throughput`` of the sweep.

``python -m tests.gpu.sweep ddp OUTPUT.json --gpus 4``, ``python -m tests.gpu.sweep throughput OUTPUT.json --gpus 4``.
"""

from __future__ import annotations

from typing import Any

from tests.gpu.cases import BENCH, CPU, SDPA, SDPA_DROP, Case

DDP = [
    Case(name="1.7B-ddp-fp16-n4", gpus=4, model="1.7B", precision="fp16", micro_batch_size=1, ddp=True, **BENCH),
    Case(name="453M-ddp-n4", gpus=4, model="453M", ddp=True, **BENCH),
    Case(name="gpt2-xl-ddp-sdpa-n2", gpus=2, model="gpt2-xl", shape=SDPA, micro_batch_size=2, ddp=True),
    Case(name="gpt2-large-ddp-ckpt-n2", gpus=2, model="gpt2-large", checkpointing="torch", ddp=True),
    Case(name="gpt2-ddp-adagrad-n2", gpus=2, model="gpt2", optimizer="adagrad", shape=SDPA_DROP, ddp=True),
    Case(name="gpt2-ddp-bf16-n1", gpus=1, model="gpt2", ddp=True),
    Case(name="gpt2-ddp-fp16-n1", gpus=1, model="gpt2", precision="fp16", shape=SDPA, micro_batch_size=8, ddp=True),
    Case(name="gpt2-ddp-fp32-n1", gpus=1, model="gpt2", precision="fp32", ddp=True),
    Case(name="gpt2-ddp-sgd-n1", gpus=1, model="gpt2", optimizer="sgd", ddp=True),
    Case(
        name="gpt2-medium-ddp-gas3-n1",
        gpus=1,
        model="gpt2-medium",
        gradient_accumulation_steps=3,
        micro_batch_size=2,
        ddp=True,
    ),
]

_ONE: dict[str, Any] = {"gpus": 4, "model": "1.7B", "precision": "fp16", "micro_batch_size": 1, "steps": 12, **BENCH}

#: The benchmark's model and batch on four cards, in the order of the published epochs.
THROUGHPUT = [
    Case(name="ddp", ddp=True, **_ONE),
    Case(name="zero2", stage=2, tune=True, **_ONE),
    Case(name="zero3", stage=3, tune=True, **_ONE),
    Case(name="zero3-offload", stage=3, zero=CPU, tune=True, **_ONE),
    Case(name="zero3-offload-ckpt", stage=3, zero=CPU, tune=True, checkpointing="deepspeed", **_ONE),
]
