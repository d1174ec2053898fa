"""One rank of a verification run: build the model and its engine, a few real steps, a record.

``python -m runner.train SPEC_JSON OUTPUT_DIR``, started once per rank by DeepSpeed's launcher.
Writes ``rank-R.json`` on success, ``failure-R.json`` when it fails, ``progress-R.jsonl`` meanwhile.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsplan.dsconfig.ddp import is_ddp
from dsplan.errors import EXIT_BAD_INPUT, EXIT_NO_DEVICE, EXIT_OUT_OF_MEMORY, DsplanError
from runner.models.checkpointing import checkpoint_function as checkpoint_function  # noqa: PLC0414  others read it here
from runner.orphan import exit_with_parent
from runner.spec import RunSpec

if TYPE_CHECKING:
    from runner.device import Device
    from runner.models import Trainee
    from runner.probe import Probe

_LONGEST_MESSAGE = 600
_KINDS = {EXIT_BAD_INPUT: "bad_input", EXIT_NO_DEVICE: "no_device", EXIT_OUT_OF_MEMORY: "out_of_memory"}
MAX_SKIPPED_STEPS = 12  # an fp16 run may skip its first updates until the loss scale has settled


class Reporter:
    """Writes what this rank has to say into the output folder, each file whole or not at all."""

    def __init__(self, folder: Path, rank: int) -> None:
        self._folder = folder
        self._rank = rank
        self.phase = "start"
        self.step: int | None = None
        self.text = "starting"
        self._failed = False

    def progress(self, event: dict[str, Any]) -> None:
        with (self._folder / f"progress-{self._rank}.jsonl").open("a", encoding="utf-8") as log:
            log.write(json.dumps(event) + "\n")

    def stage(self, text: str) -> None:
        self.text = text
        self.progress({"event": "stage", "text": text})

    def record(self, document: dict[str, Any]) -> None:
        self._write(f"rank-{self._rank}.json", document)

    def failure(self, error: BaseException) -> None:
        """Say how this rank failed; what follows from a failure that it has told of already is not said.

        ``explained``: the message is written for people, so that the log has nothing to add.
        """
        if self._failed:
            return
        self._failed = True
        explained = isinstance(error, DsplanError)
        message = str(error) if explained else f"{type(error).__name__}: {_first_line(error)}"
        document = {"kind": _kind(error), "phase": self.phase, "message": message, "explained": explained}
        self._write(f"failure-{self._rank}.json", document | ({} if self.step is None else {"step": self.step}))

    def _write(self, name: str, document: dict[str, Any]) -> None:
        temporary = self._folder / f".{name}.tmp"
        temporary.write_text(json.dumps(document), encoding="utf-8")
        temporary.replace(self._folder / name)


def main() -> int:
    return as_rank(train)


def as_rank(work: Callable[[RunSpec, Reporter], dict[str, Any]]) -> int:
    """Do ``work`` as the rank that DeepSpeed's launcher has started, and leave its record, or how it failed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("spec", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--local_rank", type=int, default=0)
    arguments = parser.parse_args()
    exit_with_parent()
    reporter = Reporter(arguments.output, int(os.environ.get("RANK", "0")))
    try:
        reporter.record(work(RunSpec.read(arguments.spec), reporter))
    except BaseException as error:
        reporter.failure(error)
        traceback.print_exc()
        return 1
    return 0


def train(spec: RunSpec, reporter: Reporter) -> dict[str, Any]:
    """Run the steps of ``spec`` on this rank and return the rank's record."""
    reporter.stage("loading torch and DeepSpeed")
    if spec.device == "fake":
        gc.disable()  # until collector.begin: imports leave little garbage, and set off dozens of collections
    import torch

    if spec.device == "fake":
        from runner.device.fake.compiler import postpone

        postpone()
    else:
        import torch._dynamo  # zero.Init patches torch while dynamo would be imported inside it

    from runner.device import open_device
    from runner.models import trainee_of

    trainee = trainee_of(spec)
    device = open_device(spec)  # before DeepSpeed, which keeps what torch has when it is imported
    import deepspeed
    from deepspeed.accelerator import get_accelerator

    from runner.compiling import announce_compilation
    from runner.probe import Probe

    if spec.device == "fake":
        from runner.device.fake import collector, lost
        from runner.device.fake.aio import without_drive

        lost.tell(reporter.failure)
        spec = replace(spec, ds_config=without_drive(spec.ds_config))
    announce_compilation(reporter.stage, back_to=lambda: reporter.text)
    torch.manual_seed(spec.seed)
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    reporter.stage("joining the process group")
    deepspeed.init_distributed(dist_backend=device.backend, verbose=False)
    get_accelerator().manual_seed(spec.seed)

    if spec.device == "fake":
        collector.begin()
    probe = Probe(device)  # from here on resident memory is the run's
    started = time.perf_counter()
    reporter.phase = "init"
    reporter.stage("building the model and " + ("torch's DDP" if is_ddp(spec.ds_config) else "DeepSpeed's engine"))
    with probe.phase("init"):
        engine = _engine(spec, trainee, device)
    init = probe.take()["init"]
    init_seconds = time.perf_counter() - started
    reporter.stage("taking the first step")

    batches = batch_source(spec, trainee.vocab_size, engine, rank)
    steps = take_steps(spec, engine, trainee, batches, device=device, probe=probe, reporter=reporter)

    info = device.info()
    return {
        "rank": rank,
        "world_size": world_size,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "device": {"kind": info.kind, "name": info.name, "memory_bytes": info.memory_bytes},
        "versions": {"torch": torch.__version__, "deepspeed": deepspeed.__version__, **device.versions()},
        "optimizer": type(engine.basic_optimizer).__name__,
        "num_parameters": model_parameter_count(engine.module),
        "init": init,
        "init_seconds": init_seconds,
        "steps": steps,
        "host": probe.host(),
        **device.extras(),
    }


def _engine(spec: RunSpec, trainee: Trainee, device: Device) -> Any:
    """What trains: DeepSpeed's engine, or torch's DDP with the same methods."""
    if not is_ddp(spec.ds_config):
        return build_engine(spec, trainee)
    from runner.ddp import DdpEngine

    return DdpEngine(trainee.build(spec), spec.ds_config, device.torch_device())


def build_engine(spec: RunSpec, trainee: Trainee) -> Any:
    """The model, for stage 3 under zero.Init, in DeepSpeed's engine. What only it needs dies on return."""
    import deepspeed

    model = trainee.build(spec)
    engine, *_ = deepspeed.initialize(model=model, model_parameters=model.parameters(), config=dict(spec.ds_config))
    if spec.activation_checkpointing == "deepspeed":
        deepspeed.checkpointing.configure(None, deepspeed_config=dict(spec.ds_config))
    return engine


def take_steps(
    spec: RunSpec,
    engine: Any,
    trainee: Trainee,
    batches: Iterator[Any],
    *,
    device: Device,
    probe: Probe,
    reporter: Reporter,
) -> list[dict[str, Any]]:
    """Steps until ``spec.steps`` of them have updated the parameters, each with its phases as measured."""
    from torch.utils._python_dispatch import _disable_current_modes

    steps: list[dict[str, Any]] = []
    updates = 0
    while updates < spec.steps and len(steps) < spec.steps + MAX_SKIPPED_STEPS:
        step_started = time.perf_counter()
        reporter.step = len(steps) + 1
        loss_value: float | None = None
        for _ in range(engine.gradient_accumulation_steps()):
            with _disable_current_modes():  # the CPU's count is of the model's tensors, not of where data comes from
                on_host = next(batches)
            reporter.phase = "forward"
            with probe.phase("forward"):
                loss = trainee.loss(engine, *(device.place(tensor) for tensor in on_host))
            reporter.phase = "backward"
            with probe.phase("backward"):
                engine.backward(loss)
            loss_value = None if spec.device == "fake" else float(loss.detach())
            del loss
            reporter.phase = "step"
            with probe.phase("step"):
                engine.step()
        device.step_ended()
        skipped = bool(getattr(engine.optimizer, "overflow", False))
        updates += not skipped
        steps.append(
            {
                "index": len(steps),
                "phases": probe.take(),
                "loss": loss_value,
                "skipped": skipped,
                "seconds": time.perf_counter() - step_started,
            }
        )
        reporter.progress({"event": "step", "step": updates, "steps": spec.steps, "loss": loss_value})
    return steps


def batch_source(spec: RunSpec, vocab_size: int, engine: Any, rank: int) -> Iterator[Any]:
    """Endless batches for this rank: (tokens, targets) on the host."""
    from mingpt import data

    source = data.text if spec.data == "text" else data.synthetic
    batch = engine.train_micro_batch_size_per_gpu()
    batches: Iterator[Any] = source(vocab_size, batch, spec.sequence_length, seed=spec.seed + rank)
    return batches


def model_parameter_count(module: Any) -> int:
    """Parameters of the whole model, also where stage 3 has partitioned them (``ds_numel``)."""
    return sum(int(getattr(parameter, "ds_numel", parameter.numel())) for parameter in module.parameters())


def _first_line(error: BaseException) -> str:
    """What it says; torch goes on with every kernel that it would have had instead."""
    return next(iter(str(error).splitlines()), "")[:_LONGEST_MESSAGE]


def _kind(error: BaseException) -> str:
    if isinstance(error, DsplanError):
        return _KINDS.get(error.exit_code, "error")
    return "out_of_memory" if _is_out_of_memory(error) else "error"


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "out of memory" in str(error)


if __name__ == "__main__":
    raise SystemExit(main())
