"""The minGPT that ships with dsplan, as a run trains it."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from mingpt import GPT, GPTConfig
from runner.models.checkpointing import checkpoint_function
from runner.spec import RunSpec


class MinGpt:
    """A minGPT of the shape that a model file says."""

    def __init__(self, model: Mapping[str, Any]) -> None:
        self.config = GPTConfig.from_dict(dict(model))

    @property
    def vocab_size(self) -> int:
        return self.config.vocab_size  # type: ignore[no-any-return]

    def build(self, spec: RunSpec) -> Any:
        import deepspeed

        stage = spec.ds_config.get("zero_optimization", {}).get("stage", 0)
        partitioned = stage == 3 and spec.zero_init
        with deepspeed.zero.Init(config_dict_or_path=spec.ds_config) if partitioned else contextlib.nullcontext():
            return GPT(self.config, checkpoint=checkpoint_function(spec.activation_checkpointing))

    def loss(self, engine: Any, tokens: Any, targets: Any) -> Any:
        return engine(tokens, targets)
