"""One DeepSpeed engine whose steps are timed: built on the device, fed batches of any size, taken down again.

For calibration and for measuring many configurations in one process, where the launcher's fifteen seconds a run
would be most of the time. Memory is that of ``runner.train``: the model is drawn and cast on the device, which is fast,
and goes back to the host before the allocator is limited.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from runner.device import Device
from runner.train import checkpoint_function

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTimes:
    """Seconds of one step on this rank.

    Attributes:
        seconds: mean over steps that ran without waiting for the device between phases.
        forward_s, backward_s, step_s: of one more step, with a wait after each phase.
    """

    seconds: float
    forward_s: float
    backward_s: float
    step_s: float


class TimedEngine:
    """DeepSpeed's engine around a minGPT.

    Args:
        model: a model file (``ModelShape.to_config()``).
        ds_config: the configuration, batch sizes resolved.
        checkpointing: as in :class:`runner.spec.RunSpec`.
        device: the open device of this rank.
        limit: called once the model is there and before DeepSpeed is: limits the allocator.
        collect: collect garbage before the allocator is limited and when the engine is closed. It looks at every object
            of the process, torch's and DeepSpeed's with it, for a second or less: an engine that holds next to nothing
            can do without.
    """

    def __init__(
        self,
        model: Mapping[str, Any],
        ds_config: Mapping[str, Any],
        *,
        checkpointing: str,
        device: Device,
        limit: Callable[[], None] | None = None,
        collect: bool = True,
    ) -> None:
        import deepspeed

        from mingpt import GPT, GPTConfig

        self._device, self._collects = device, collect
        self._vocab_size = int(model["vocab_size"])
        stage = ds_config.get("zero_optimization", {}).get("stage", 0)
        partitioned = stage == 3
        with (
            deepspeed.zero.Init(config_dict_or_path=dict(ds_config)) if partitioned else contextlib.nullcontext(),
            device.torch_device() if not partitioned else contextlib.nullcontext(),
        ):
            module = GPT(GPTConfig.from_dict(dict(model)), checkpoint=checkpoint_function(checkpointing))
        for name, dtype in _DTYPES.items():
            if not partitioned and ds_config.get(name, {}).get("enabled"):
                module.to(dtype)
        if not partitioned:
            # A run builds its model on the host, so that DeepSpeed asks the device for one tensor after the other.
            # Cast here, they would lie scattered in what the fp32 weights have left.
            module.to("cpu")
        self._collect()
        if limit is not None:
            limit()
        self.engine: Any
        self.engine, *_ = deepspeed.initialize(
            model=module, model_parameters=module.parameters(), config=dict(ds_config)
        )

    def batch(self, batch: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens and targets of ``batch`` samples of ``length`` random tokens, on the device."""
        tokens = self._device.place(torch.randint(self._vocab_size, (batch, length + 1)))
        return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    def synchronize(self) -> None:
        """Wait for the device."""
        self._device.synchronize()

    def time(self, batch: int, length: int, *, warmup: int, steps: int) -> StepTimes:
        """Times of steps of ``batch`` samples of ``length`` tokens on this rank."""
        inputs, targets = self.batch(batch, length)
        for _ in range(warmup):
            self._step(inputs, targets)
        self._device.synchronize()
        begun = time.perf_counter()
        for _ in range(steps):
            self._step(inputs, targets)
        self._device.synchronize()
        seconds = (time.perf_counter() - begun) / steps
        marks = [time.perf_counter()]
        loss = self.engine(inputs, targets)
        self._device.synchronize()
        marks.append(time.perf_counter())
        self.engine.backward(loss)
        self._device.synchronize()
        marks.append(time.perf_counter())
        del loss
        self.engine.step()
        self._device.synchronize()
        marks.append(time.perf_counter())
        forward, backward, step = (after - before for before, after in itertools.pairwise(marks))
        return StepTimes(seconds=seconds, forward_s=forward, backward_s=backward, step_s=step)

    def close(self) -> None:
        """Give back all that the engine held."""
        engine, self.engine = self.engine, None
        with contextlib.suppress(Exception):  # after an out-of-memory its hooks may be half done
            engine.destroy()
        module = getattr(engine, "module", None)
        optimizer = getattr(engine, "optimizer", None)
        for held in (module, optimizer):
            _let_go(held)
        engine.__dict__.clear()
        del engine, module, optimizer, held
        self._collect()

    def _step(self, inputs: torch.Tensor, targets: torch.Tensor) -> None:
        loss = self.engine(inputs, targets)
        self.engine.backward(loss)
        del loss
        self.engine.step()

    def _collect(self) -> None:
        if not self._collects:
            return
        gc.collect()
        if self._device.torch_device().type == "cuda":
            torch.cuda.empty_cache()


def _let_go(held: Any) -> None:
    """Drop the tensors of a module or an optimizer, whoever else still refers to the object (hooks, registries)."""
    if isinstance(held, torch.nn.Module):
        for tensor in (*held.parameters(), *held.buffers()):
            tensor.grad = None
            with contextlib.suppress(RuntimeError):
                tensor.data = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
            for name in ("ds_tensor", "_hp_mapping", "grad_accum", "hpg"):
                if getattr(tensor, name, None) is not None:
                    setattr(tensor, name, None)
    elif held is not None:
        with contextlib.suppress(Exception):
            inner = getattr(held, "optimizer", None)
            if inner is not None:
                inner.state.clear()
                inner.param_groups.clear()
        held.__dict__.clear()
