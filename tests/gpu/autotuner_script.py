"""A training script as DeepSpeed's autotuner wants it: a minGPT on synthetic tokens, until the engine ends it.

``deepspeed --autotuning tune ... autotuner_script.py --shape SHAPE.json --sequence N --deepspeed_config FILE``
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
import torch._dynamo

from runner.device import open_device
from runner.orphan import exit_with_parent
from runner.spec import RunSpec
from runner.train import checkpoint_function

MOST_STEPS = 50  # the autotuner ends a run after its sixth


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", type=Path)
    parser.add_argument("--sequence", type=int)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--deepspeed_config")
    parser.add_argument("--local_rank", type=int, default=0)
    arguments = parser.parse_args()
    exit_with_parent()
    device = open_device(RunSpec(model={}, ds_config={}, sequence_length=1, device=arguments.device))
    import deepspeed

    from mingpt import GPT, GPTConfig

    shape: dict[str, Any] = json.loads(arguments.shape.read_text(encoding="utf-8"))
    deepspeed.init_distributed(dist_backend=device.backend, verbose=False)
    with device.torch_device():
        module = GPT(GPTConfig.from_dict(shape), checkpoint=checkpoint_function("none"))
    engine, *_ = deepspeed.initialize(
        model=module, model_parameters=module.parameters(), config=arguments.deepspeed_config
    )
    batch = engine.train_micro_batch_size_per_gpu()
    tokens = device.place(torch.randint(shape["vocab_size"], (batch, arguments.sequence + 1)))
    for _ in range(MOST_STEPS * engine.gradient_accumulation_steps()):
        loss = engine(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())
        engine.backward(loss)
        engine.step()


if __name__ == "__main__":
    main()
