"""torch's DistributedDataParallel with native AMP, with the methods of DeepSpeed's engine that a run calls.

What a training script without DeepSpeed does, in the order of torch's own examples (its documentation, notes/ddp and
notes/amp_examples): the model is moved and wrapped, the optimizer made of its parameters; forward under
``torch.autocast``, the loss scaled in fp16 only, gradients accumulated under ``no_sync``, unscaled and clipped before
the step, and freed after it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True, slots=True)
class Update:
    """What became of the last step; ``overflow``: an fp16 gradient was not finite, so that nothing was updated."""

    overflow: bool = False


class DdpEngine:
    """``model`` on ``device``, wrapped, with its optimizer.

    Args:
        model: on the host, in fp32.
        config: what :func:`dsplan.dsconfig.ddp.ddp_document` writes.
        device: where this rank trains.
    """

    def __init__(self, model: torch.nn.Module, config: Mapping[str, Any], device: torch.device) -> None:
        self._config = config
        self._dtype = _dtype(config)
        self._device_type = device.type
        self.module = model.to(device)
        self._ddp = DistributedDataParallel(self.module)
        self.basic_optimizer = _optimizer(config["optimizer"], self.module)
        self.basic_optimizer.register_step_post_hook(self._updated)
        self._scaler = torch.amp.GradScaler(device.type, enabled=self._dtype is torch.float16)
        self._micro_batches = 0
        self.optimizer = Update()

    def train_micro_batch_size_per_gpu(self) -> int:
        return int(self._config["train_micro_batch_size_per_gpu"])

    def gradient_accumulation_steps(self) -> int:
        return int(self._config["gradient_accumulation_steps"])

    def __call__(self, *inputs: torch.Tensor) -> Any:
        """The loss of one micro batch; gradients are reduced in the backward pass of a step's last one only."""
        self._micro_batches += 1
        waits = contextlib.nullcontext() if self._is_boundary else self._ddp.no_sync()
        with waits, torch.autocast(self._device_type, dtype=self._dtype, enabled=self._dtype is not None):
            return self._ddp(*inputs)

    def backward(self, loss: torch.Tensor) -> None:
        if self.gradient_accumulation_steps() > 1:
            loss = loss / self.gradient_accumulation_steps()
        self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]

    def step(self) -> None:
        """Update the parameters where the micro batch was a step's last."""
        if not self._is_boundary:
            return
        self.optimizer = Update(overflow=True)  # unless the optimizer is called
        clipping = float(self._config["gradient_clipping"])
        if clipping:
            self._scaler.unscale_(self.basic_optimizer)
            torch.nn.utils.clip_grad_norm_(self.module.parameters(), clipping)
        self._scaler.step(self.basic_optimizer)
        self._scaler.update()
        self.basic_optimizer.zero_grad(set_to_none=True)

    @property
    def _is_boundary(self) -> bool:
        return self._micro_batches % self.gradient_accumulation_steps() == 0

    def _updated(self, *_: Any) -> None:
        self.optimizer = Update()


def _dtype(config: Mapping[str, Any]) -> torch.dtype | None:
    """What autocast lowers to; None: nothing."""
    for key, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        if config.get(key, {}).get("enabled"):
            return dtype
    return None


def _optimizer(section: Mapping[str, Any], model: torch.nn.Module) -> torch.optim.Optimizer:
    """torch.optim's class of that name; foreach or not is left to torch."""
    made: torch.optim.Optimizer = getattr(torch.optim, section["type"])(model.parameters(), **section["params"])
    return made
