"""A module of the user's own, made by the factory that a model file names."""

from __future__ import annotations

import contextlib
import inspect
import sys
from collections.abc import Mapping
from typing import Any

from dsplan.errors import InputError
from runner.meta import factory_of
from runner.spec import RunSpec


class LiveModule:
    """What the factory makes. Its ``forward`` takes (tokens, targets), or ``input_ids`` and ``labels`` by name.

    It returns the loss, or something that has it as ``loss`` or first.

    Raises:
        InputError: the model file names no factory, or one that is not here.
    """

    def __init__(self, model: Mapping[str, Any]) -> None:
        if not model.get("factory"):
            raise InputError("model_type module: the model file names no factory, so that nothing can be built from it")
        folder = model.get("folder")
        if folder and folder not in sys.path:
            sys.path.append(str(folder))
        try:
            self._factory = factory_of(str(model["factory"]))
        except ValueError as error:
            raise InputError(str(error)) from error
        self.vocab_size = int(model["vocab_size"])
        self._by_name: bool | None = None

    def build(self, spec: RunSpec) -> Any:
        import deepspeed

        if spec.activation_checkpointing != "none":
            raise InputError("--activation-checkpointing: a module of your own checkpoints by itself; leave it out")
        stage = spec.ds_config.get("zero_optimization", {}).get("stage", 0)
        partitioned = stage == 3 and spec.zero_init
        with deepspeed.zero.Init(config_dict_or_path=spec.ds_config) if partitioned else contextlib.nullcontext():
            module = self._factory().train()
        self._by_name = "labels" in inspect.signature(module.forward).parameters
        return module

    def loss(self, engine: Any, tokens: Any, targets: Any) -> Any:
        found = engine(input_ids=tokens, labels=targets) if self._by_name else engine(tokens, targets)
        found = getattr(found, "loss", found)
        return found[0] if isinstance(found, (tuple, list)) else found
