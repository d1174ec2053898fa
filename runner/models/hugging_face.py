"""A decoder of transformers', built from its configuration with random weights, as a run trains it.

As a Trainer does it: built in fp32 (DeepSpeed casts), at stage 3 under the zero.Init that transformers itself
enters, the loss that the model computes from ``labels``, and no cache of keys and values.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from typing import Any

from dsplan.errors import MissingExtraError
from dsplan.modelfile import FLASH_ATTENTION
from runner.models.adapters import adapt
from runner.models.checkpointing import checkpoint_function
from runner.spec import RunSpec

#: Random numbers that weights are filled with, over and over: drawing billions takes minutes on a CPU.
_DRAWN = 1 << 20


class CausalLm:
    """The ``*ForCausalLM`` of a configuration of transformers'.

    Raises:
        MissingExtraError: transformers is not installed, or flash-attn where its kernel is asked for.
    """

    def __init__(self, model: Mapping[str, Any]) -> None:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is looked up: the configuration is all there is
        try:
            from transformers import AutoConfig, AutoModelForCausalLM
        except ImportError as error:
            raise MissingExtraError(
                f"a {model['model_type']} needs transformers, which is not installed; "
                "install it with: pip install 'dsplan[hf]'"
            ) from error
        keys = dict(model)
        self._attention = keys.pop("attn_implementation", None)
        if self._attention == FLASH_ATTENTION and importlib.util.find_spec("flash_attn") is None:
            raise MissingExtraError(
                f"attn_implementation: {FLASH_ATTENTION} needs flash-attn, which is not installed; "
                "take --attention sdpa, or install flash-attn"
            )
        self._trained = dict(keys.pop("dsplan", {}))
        # Their weights' type is DeepSpeed's business.
        for key in ("dtype", "torch_dtype", "architectures"):
            keys.pop(key, None)
        self.config = AutoConfig.for_model(keys.pop("model_type"), **keys)
        self.config.use_cache = False
        # Its lazily imported modules too: behind a dry run's fake tensors they would make fake constants.
        self._class: Any = AutoModelForCausalLM._model_mapping[type(self.config)]

    @property
    def vocab_size(self) -> int:
        return int(self.config.vocab_size)

    def build(self, spec: RunSpec) -> Any:
        import torch
        from transformers import initialization
        from transformers.integrations.deepspeed import set_hf_deepspeed_config, unset_hf_deepspeed_config

        if spec.device == "fake":
            _read_no_positions()
        partitioned = spec.ds_config.get("zero_optimization", {}).get("stage", 0) == 3 and spec.zero_init
        marker = _Stage3(spec.ds_config)
        if partitioned:
            set_hf_deepspeed_config(marker)  # type: ignore[no-untyped-call]
        try:
            with initialization.no_init_weights():
                model = self._class._from_config(self.config, attn_implementation=self._attention, dtype=torch.float32)
        finally:
            if partitioned:
                unset_hf_deepspeed_config()  # type: ignore[no-untyped-call]
        model.tie_weights()
        adapt(model, self._trained)
        _fill(model, float(getattr(self.config, "initializer_range", 0.02)), data=spec.device != "fake")
        _checkpoint(model, spec.activation_checkpointing)
        if self._trained and spec.activation_checkpointing != "none":
            model.enable_input_require_grads()  # else nothing tells a re-entrant checkpoint to run backward
        return model.train()

    def loss(self, engine: Any, tokens: Any, targets: Any) -> Any:
        """As transformers computes it from labels, which it shifts by one token: of these once more, at no cost."""
        return engine(input_ids=tokens, labels=targets).loss


class _Stage3:
    """What transformers asks of the DeepSpeed configuration before it builds a model (integrations/deepspeed.py)."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = dict(config)

    def is_zero3(self) -> bool:
        return True


def _read_no_positions() -> None:
    """In a dry run: batches are not packed, as transformers would find in the positions' data.

    masking_utils.py ``find_packed_sequence_indices`` looks whether several samples share a row, and takes fake tensors
    for a graph that is being traced, for which it would keep the mask. What it computes on the way is computed.
    """
    from transformers import masking_utils

    found: Any = masking_utils.find_packed_sequence_indices

    def find_packed_sequence_indices(position_ids: Any) -> None:
        (found(position_ids)[:, -1] == 0).all()

    masking_utils.find_packed_sequence_indices = find_packed_sequence_indices


def _checkpoint(model: Any, kind: str) -> None:
    if kind == "none":
        return
    if kind == "deepspeed":
        model._set_gradient_checkpointing(enable=True, gradient_checkpointing_func=checkpoint_function(kind))
    else:
        model.gradient_checkpointing_enable({"use_reentrant": kind == "torch-reentrant"})


def _fill(model: Any, std: float, *, data: bool) -> None:
    """Random weights of standard deviation ``std``, zero biases, norms as their constructors make them.

    One draw of a million numbers is laid over every weight. Of a parameter that stage 3 has partitioned only this
    rank's part is filled. ``data``: whether there are numbers at all.
    """
    import torch

    if not data:
        return
    drawn: dict[Any, Any] = {}
    with torch.no_grad():
        for module in model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                part = getattr(parameter, "ds_tensor", None)
                part = parameter if part is None else part
                dimensions = len(getattr(parameter, "ds_shape", parameter.shape))
                if name == "bias":
                    part.zero_()
                elif isinstance(module, torch.nn.LayerNorm):
                    part.fill_(1.0)
                elif dimensions > 1:
                    key = (part.device, part.dtype)
                    if key not in drawn:
                        drawn[key] = torch.empty(_DRAWN, dtype=part.dtype, device=part.device).normal_(std=std)
                    _lay(drawn[key], part.data.view(-1))


def _lay(drawn: Any, flat: Any) -> None:
    rows, rest = divmod(flat.numel(), drawn.numel())
    whole = flat.numel() - rest
    if rows:
        flat[:whole].view(rows, -1).copy_(drawn)
    flat[whole:].copy_(drawn[:rest])
