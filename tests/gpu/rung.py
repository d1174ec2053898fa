"""One rank of a climb: ``python -m runner.child tests.gpu.rung FOLDER...`` takes one rung after the other.

Each FOLDER is a rung: it holds ``spec.json`` and gets what ``runner.train`` writes, and ``allocator-R.json``: how often
the allocator gave back its cache and tried again, where that did not help what it held when it gave up, and what the
rung before had left. All rungs are of one setting. Between two of them the engine is taken down and its memory is given
back to the driver, so that starting up is paid for once; where anything is left, the next rung gets a new process. A
rung that dies ends the process.
"""

from __future__ import annotations

import copy
import gc
import json
import os
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

import runner.device
import runner.models
from runner import train
from runner.device import Device
from runner.models import Trainee
from runner.spec import RunSpec

_SEGMENTS = 12
_BLOCKS = 48
#: What may be left of the rung before: torch's bookkeeping, in segments of 2 MiB.
LEFT_BYTES = 16 * 2**20


class Climber:
    """The rungs of this process: listens to what ``runner.train`` does, and tidies up after it."""

    def __init__(self) -> None:
        self.death: dict[str, Any] = {}
        self.left: list[int] = [0, 0]
        self.folder = Path()
        self.engine: Any = None
        self.whole: Any = None  # the model as it was built, where it is built whole on the host
        self._watches = False
        self._opened, self._trainee_of = runner.device.open_device, runner.models.trainee_of
        self._built = train.build_engine
        runner.device.open_device = self._open_device
        runner.models.trainee_of = self._copied
        train.build_engine = self._build_engine

    def climb(self, folders: list[Path]) -> int:
        """Take the rungs in ``folders``; the exit code."""
        for folder in folders:
            self.folder = folder
            spec = RunSpec.read(folder / "spec.json")
            reporter = train.Reporter(folder, int(os.environ.get("RANK", "0")))
            try:
                record = train.train(spec, reporter)
            except BaseException as error:
                reporter.failure(error)
                traceback.print_exc()
                self._write(spec)
                return 1
            self._write(spec)
            reporter.record(record)
            if folder is not folders[-1] and not self._tidy(spec):
                break
        return 0

    def _write(self, spec: RunSpec) -> None:
        statistics: dict[str, Any] = {"death": self.death or None, "left_bytes": self.left}
        with suppress(Exception):
            import torch

            if spec.device == "cuda":
                found = torch.cuda.memory_stats()
                statistics |= {key: found[key] for key in ("num_alloc_retries", "num_ooms")}
        _save(self.folder, statistics)

    def _tidy(self, spec: RunSpec) -> bool:
        """Give back all that the rung held; whether every rank could."""
        import torch

        release(self.engine)
        self.engine = None
        gc.collect()
        if spec.device != "cuda":
            return True
        torch.cuda.synchronize()
        with suppress(AttributeError):
            torch._C._cuda_clearCublasWorkspaces()
        torch.cuda.empty_cache()
        with suppress(AttributeError):
            torch._C._host_emptyCache()
        torch.cuda.reset_accumulated_memory_stats()
        self.left = [torch.cuda.memory_allocated(), torch.cuda.memory_reserved()]
        unclean = self.left[1] > LEFT_BYTES
        if spec.gpus > 1:  # all go on, or none does
            flag = torch.tensor([int(unclean)], device="cuda")
            torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
            unclean = bool(flag.item())
            del flag
            torch.cuda.empty_cache()
        return not unclean

    def _build_engine(self, spec: RunSpec, trainee: Trainee) -> Any:
        self.engine = self._built(spec, trainee)
        return self.engine

    def _copied(self, spec: RunSpec) -> Trainee:
        return _Copied(self, self._trainee_of(spec))

    def _open_device(self, spec: RunSpec) -> Device:
        """The device, with the first out-of-memory error described when it happens, before anything is freed."""
        import torch

        device = self._opened(spec)
        attach = getattr(torch._C, "_cuda_attach_out_of_memory_observer", None)
        if spec.device == "cuda" and attach is not None and not self._watches:
            self._watches = True
            with suppress(Exception):
                torch.cuda.init()  # type: ignore[no-untyped-call]
                attach(self._observe)
        return device

    def _observe(self, _device: int, requested: int, _allowed: int, free: int) -> None:
        if self.death:
            return
        self.death.update(requested_bytes=requested, device_free_bytes=free)
        with suppress(Exception):
            import torch

            self.death.update(_describe(torch))
        _save(self.folder, {"death": self.death, "left_bytes": self.left})  # what comes after may be ended


class _Copied:
    """A trainee whose module is built once: drawing its weights takes longer than copying them."""

    def __init__(self, climber: Climber, trainee: Trainee) -> None:
        self._climber, self._trainee = climber, trainee

    @property
    def vocab_size(self) -> int:
        return self._trainee.vocab_size

    def build(self, spec: RunSpec) -> Any:
        stage = spec.ds_config.get("zero_optimization", {}).get("stage", 0)
        if spec.device == "fake" or (stage == 3 and spec.zero_init):  # which has partitions, on the device
            return self._trainee.build(spec)
        if self._climber.whole is None:
            self._climber.whole = self._trainee.build(spec)
        return copy.deepcopy(self._climber.whole)

    def loss(self, engine: Any, tokens: Any, targets: Any) -> Any:
        return self._trainee.loss(engine, tokens, targets)


def release(engine: Any) -> None:
    """Drop the tensors of a DeepSpeed engine, whoever else still refers to its parts (hooks, registries)."""
    import torch

    with suppress(Exception):
        engine.destroy()
    module, optimizer = getattr(engine, "module", None), getattr(engine, "optimizer", None)
    if module is not None:
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.grad = None
            with suppress(RuntimeError):
                tensor.data = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
            for name in ("ds_tensor", "_hp_mapping", "grad_accum", "hpg", "param_idx_in_group", "_z3_optimizer"):
                if getattr(tensor, name, None) is not None:
                    setattr(tensor, name, None)
        for part in list(module.modules()):  # hooks may hold on to these; a mask is a view of what would stay
            part._buffers.clear()
            part._parameters.clear()
    inner = getattr(optimizer, "optimizer", optimizer)
    with suppress(Exception):
        inner.state.clear()
        inner.param_groups.clear()
    for held in (optimizer, inner, engine):
        with suppress(Exception):
            held.__dict__.clear()


def _save(folder: Path, statistics: dict[str, Any]) -> None:
    rank = os.environ.get("RANK", "0")
    (folder / f"allocator-{rank}.json").write_text(json.dumps(statistics), encoding="utf-8")


def _describe(torch: Any) -> dict[str, Any]:
    statistics = torch.cuda.memory_stats()
    segments = torch.cuda.memory_snapshot()
    partly = [segment for segment in segments if 0 < segment["active_size"] < segment["total_size"]]
    partly.sort(key=lambda segment: segment["active_size"] - segment["total_size"])
    return {
        "allocated_bytes": statistics["allocated_bytes.all.current"],
        "active_bytes": statistics["active_bytes.all.current"],
        "reserved_bytes": statistics["reserved_bytes.all.current"],
        "inactive_split_bytes": statistics["inactive_split_bytes.all.current"],
        "small_reserved_bytes": statistics["reserved_bytes.small_pool.current"],
        "num_segments": len(segments),
        "num_unused_segments": sum(segment["active_size"] == 0 for segment in segments),
        # Of the segments that are partly in use, those with most to spare: + a block in use, - a free one.
        "partly_used": [
            {
                "stream": segment["stream"],
                "blocks": [
                    block["size"] if block["state"].startswith("active") else -block["size"]
                    for block in segment["blocks"][:_BLOCKS]
                ],
            }
            for segment in partly[:_SEGMENTS]
        ],
    }


def main() -> None:
    from runner.orphan import exit_with_parent

    exit_with_parent()
    code = Climber().climb([Path(folder) for folder in sys.argv[1:]])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # nothing of value is left, and a process group whose other ranks died may never go


if __name__ == "__main__":
    main()
