"""``python -m tests.families.meta < CONFIGURATIONS > PARAMETERS``: transformers' models on the meta device.

A line of JSON each way: a configuration, and the names and shapes of its model's parameters in order, and whether each
is trained. What is trained is as ``runner.models.adapters`` makes it of the section ``dsplan``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]

Named = list[tuple[str, tuple[int, ...], bool]]


def parameters_of(configs: Mapping[str, Mapping[str, Any]]) -> dict[str, Named]:
    """Names and shapes of the parameters of each configuration's ``*ForCausalLM``, each once, as torch orders them."""
    lines = "".join(json.dumps(config) + "\n" for config in configs.values())
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", __name__],
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        input=lines,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads(line) for line in done.stdout.splitlines()]
    return {
        name: [(each, tuple(shape), trained) for each, shape, trained in parameters]
        for name, parameters in zip(configs, found, strict=True)
    }


def _serve() -> None:
    import torch
    import transformers
    from transformers import AutoConfig, AutoModelForCausalLM

    from runner.models.adapters import adapt

    transformers.logging.set_verbosity_error()
    for line in sys.stdin:
        config = json.loads(line)
        trained = config.pop("dsplan", {})
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.for_model(config.pop("model_type"), **config))
            adapt(model, trained)
        found = [(name, list(parameter.shape), parameter.requires_grad) for name, parameter in model.named_parameters()]
        sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    _serve()
