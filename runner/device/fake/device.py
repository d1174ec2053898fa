"""The pretend device of a dry run: it stands for a catalogued accelerator, and computes nothing."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
import torch.distributed.tensor
import torch.fx.experimental.symbolic_shapes  # zero.Init patches torch while it would be imported inside it
from torch._subclasses.fake_tensor import FakeTensorMode

from dsplan.allocator import CachingAllocator, parse_settings
from dsplan.hardware import Accelerator
from dsplan.kernels import FLASH, kernels_of
from dsplan.overhead import FLASH_PASS_BYTES, PASS_BYTES, device_overhead, process_memory
from runner.device.base import DeviceInfo, Memory, PeakWindow
from runner.device.fake.answers import Answers
from runner.device.fake.backend import BACKEND, NAME, register
from runner.device.fake.compiler import postpone
from runner.device.fake.events import Events
from runner.device.fake.explanation import Explanation
from runner.device.fake.group import join
from runner.device.fake.hidden import Workspaces
from runner.device.fake.highest import Highest
from runner.device.fake.importing import import_deepspeed
from runner.device.fake.memory import Memory as RankMemory
from runner.device.fake.memory import PlainAllocator
from runner.device.fake.patches import patched_deepspeed, patched_torch
from runner.device.fake.streams import Streams
from runner.device.fake.tracking import Tracker
from runner.spec import RunSpec


class FakeResident:
    """What would be resident: the libraries, pageable tensors, and the pinned allocator's pool."""

    def __init__(self, memory: RankMemory) -> None:
        self._memory = memory
        self.base_bytes = memory.host_bytes

    def now_bytes(self) -> int:
        return self._memory.host_bytes

    def peak_bytes(self) -> int | None:
        return self._memory.peak_host_bytes

    def heap_free_bytes(self) -> int | None:
        """Nothing is said of malloc's heap."""
        return None


class FakeDevice:
    """The device of the rank, in a group of the size, and standing for the accelerator that ``spec`` says.

    From here on every tensor that is made in this process is fake, DeepSpeed sees the pretend accelerator,
    and the process group has all its ranks; so it is for the child process of one run only. A target of kind
    ``cpu`` keeps DeepSpeed's own CPU accelerator.

    Raises:
        ValueError: the specification names no target or no rank.
    """

    backend = BACKEND

    def __init__(self, spec: RunSpec) -> None:
        if spec.target is None or spec.rank is None:
            raise ValueError("device: a dry run needs a target and a rank")
        self._started = time.perf_counter()
        self._spec = spec
        self._target = Accelerator(**{**spec.target, "sources": tuple(spec.target.get("sources", ()))})
        self._phases_done: set[str] = set()
        self._compiles = str(spec.ds_config.get("optimizer", {}).get("type", "")).lower() == "muon"
        self._kernels = kernels_of(self._target)
        self._answers = Answers(spec.skipped_steps)
        self._caching: CachingAllocator | None = None
        self._device = torch.device("cpu")
        process = process_memory(spec.gpus)
        events = Events(Path(spec.events)) if spec.events else None
        if self._target.kind == "cpu":
            self._memory = RankMemory(PlainAllocator(), process, events)
        else:
            register()
            self._device = torch.device(NAME, 0)
            self._caching = self._allocator(spec)
            self._memory = RankMemory(self._caching, process, events)
        self._highest = Highest(self._memory.allocator)
        self._explanation = Explanation(self._memory)
        self._take_over(spec.rank, spec.gpus, spec.early_release)

    def _allocator(self, spec: RunSpec) -> CachingAllocator:
        usable = self._target.usable_bytes
        return CachingAllocator(
            settings=parse_settings(spec.allocator),
            capacity_bytes=None if usable is None else usable - device_overhead(self._target, spec.gpus),
            cap_bytes=spec.memory_cap_bytes,
        )

    def _take_over(self, rank: int, world_size: int, early_release: bool) -> None:
        kernels = self._kernels
        tracker = Tracker(self._memory, self._device.type, self._answers, Workspaces(kernels))
        join(rank, world_size, sorted({"cpu", self._device.type}))
        postpone()
        stack = ExitStack()  # never left: the process ends with the run
        stack.enter_context(
            patched_torch(tracker, self._device, kernels, self._highest.room, early_release=early_release)
        )
        import_deepspeed(None if self._target.kind == "cpu" else self._accelerator)
        stack.enter_context(patched_deepspeed())
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(tracker)
        self._stack = stack

    def _accelerator(self) -> Any:
        from runner.device.fake.accelerator import PretendAccelerator

        return PretendAccelerator(self._target, self._memory, Streams(self._memory))

    def info(self) -> DeviceInfo:
        return DeviceInfo(kind="fake", name=self._target.label, memory_bytes=self._target.memory_bytes or 0)

    def torch_device(self) -> torch.device:
        return self._device

    def place(self, tensor: torch.Tensor) -> torch.Tensor:
        """On the host the batch is its loader's, as on the CPU, where it is not counted either."""
        return torch.empty(tensor.shape, dtype=tensor.dtype, device=self._device)

    def synchronize(self) -> None:
        """Everything is done when it is asked for."""

    def memory(self) -> Memory:
        reserved = None if self._caching is None else self._caching.reserved_bytes
        return Memory(
            allocated_bytes=self._memory.allocator.allocated_bytes,
            reserved_bytes=reserved,
            driver_bytes=None if reserved is None else reserved + self._outside(),
        )

    def peak(self) -> PeakWindow:
        return PeakWindow(
            allocated_bytes=self._memory.allocator.peak_allocated_bytes,
            reserved_bytes=None if self._caching is None else self._caching.peak_reserved_bytes,
        )

    def reset_peak(self) -> None:
        """A phase begins."""
        self._highest.begin_phase()
        self._memory.reset_peaks()
        if self._memory.events is not None:
            self._memory.events.phase_began(levels=self._memory.levels)

    def limit(self, size_bytes: int) -> None:
        raise ValueError(f"a dry run is limited from its start (asked for {size_bytes} bytes)")

    def pinned_bytes(self) -> int | None:
        return self._memory.pinned.peak_allocated_bytes

    def _outside(self) -> int:
        """Device memory outside the allocator by now: what a pass loads is there from its end on."""
        model, config = self._spec.model, self._spec.ds_config
        stage3 = config.get("zero_optimization", {}).get("stage") == 3
        attention = model.get("attention", model.get("attn_implementation"))
        flash = attention == "sdpa" and self._kernels.fused_attention == FLASH
        fp16 = bool(config.get("fp16", {}).get("enabled"))
        total = device_overhead(
            self._target,
            self._spec.gpus,
            pinned_bytes=self._memory.pinned.allocated_bytes,
            flash_attention=flash and (fp16 or bool(config.get("bf16", {}).get("enabled"))),
            fp16_stage3=fp16 and stage3 and "step" in self._phases_done,
        )
        passes = {"forward", "backward"} - self._phases_done
        return total - len(passes) * (PASS_BYTES + (FLASH_PASS_BYTES if flash else 0))

    def resident(self) -> FakeResident:
        return FakeResident(self._memory)

    def phase_ended(self, name: str) -> None:
        if self._memory.events is not None:
            step = self._explanation.step_of(name)
            self._memory.events.phase_ended(step, name, levels=self._memory.levels)
        self._explanation.phase_ended(name)
        self._phases_done.add(name)
        if name == "forward" and self._memory.process_bytes < self._memory.process.steps_bytes:
            self._memory.set_process_bytes(self._memory.process.steps_bytes)
        if name == "step" and self._compiles:
            self._compiles = False
            from dsplan.engine.muon_compiled import PROCESS_BYTES  # with all formulas, for this alone

            self._memory.set_process_bytes(PROCESS_BYTES)

    def step_ended(self) -> None:
        self._explanation.step_ended()
        self._answers.step_ended()

    def extras(self) -> dict[str, Any]:
        caching = self._caching
        return {
            "dry_run": {
                "target": self._target.name,
                "num_events": self._memory.num_events,
                "seconds": time.perf_counter() - self._started,
                "allocator": {
                    "settings": self._spec.allocator,
                    "num_alloc_retries": 0 if caching is None else caching.num_alloc_retries,
                    "num_segments": 0 if caching is None else len(caching.snapshot()),
                },
                "early_release": self._spec.early_release,
                "answers": self._answers.to_document(),
                "host": {
                    "locked_bytes": self._memory.peak_locked_bytes,
                    "pageable_bytes": self._memory.peak_pageable_bytes,
                    "pinned_bytes": self._memory.pinned.peak_allocated_bytes,
                    "process_bytes": self._memory.process_bytes,
                },
                "peaks": self._explanation.to_document(),
            }
        }

    def versions(self) -> dict[str, str]:
        return {}
