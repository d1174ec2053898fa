"""Feed emitted configurations to the real engine, one after the other in one process: ``python -m … FILE...``.

Prints one JSON line a file: {"file", "error"}. One rank on the CPU, one step each.
"""

from __future__ import annotations

import contextlib
import gc
import json
import sys
from pathlib import Path


def main() -> None:
    import deepspeed
    import torch
    import torch._dynamo

    from mingpt import GPT, GPTConfig
    from runner.compiling import announce_compilation
    from runner.train import checkpoint_function

    announce_compilation(lambda _: None, back_to=lambda: "")  # for what it does about abandoned locks
    deepspeed.init_distributed(dist_backend="gloo", verbose=False)
    for name in sys.argv[1:]:
        path = Path(name)
        case = json.loads(path.read_text())
        error = None
        try:
            config = case["ds_config"]
            stage3 = config.get("zero_optimization", {}).get("stage") == 3
            with deepspeed.zero.Init(config_dict_or_path=config) if stage3 else contextlib.nullcontext():
                model = GPT(GPTConfig.from_dict(case["model"]), checkpoint_function(case["checkpointing"]))
            engine, *_ = deepspeed.initialize(model=model, model_parameters=model.parameters(), config=config)
            if case["checkpointing"] == "deepspeed":
                deepspeed.checkpointing.configure(None, deepspeed_config=config)
            tokens = torch.randint(100, (engine.train_micro_batch_size_per_gpu(), 16))
            engine.backward(engine(tokens, tokens))
            engine.step()
            engine.destroy()
            del engine, model
            gc.collect()
        except Exception as caught:
            error = f"{type(caught).__name__}: {caught}"
        sys.stdout.write(json.dumps({"file": path.name, "error": error}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
