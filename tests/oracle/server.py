"""Dry runs by the hundred: ``python -m tests.oracle.server < SPECS > RECORDS``, a line of JSON each way.

One process imports torch and all that DeepSpeed needs, and is forked for every specification, so that a dry run of
a small model costs a second and not four. What a run changes dies with its process.
"""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import tempfile
import time
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

TIMEOUT_S = 300


def main() -> None:
    _import_ahead()
    for line in sys.stdin:
        answer = _forked(json.loads(line))
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def _import_ahead() -> None:
    """All but DeepSpeed itself, which keeps what it finds of torch and of the accelerator when it is imported."""
    import hjson  # noqa: F401
    import numpy as np  # noqa: F401
    import pydantic  # noqa: F401
    import torch._dynamo
    import torch._subclasses.fake_tensor
    import torch.distributed
    import torch.testing._internal.distributed.fake_pg
    import torch.utils.checkpoint  # noqa: F401


def _forked(document: dict[str, Any]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        child = os.fork()
        if child == 0:
            _run(document, Path(folder))
        deadline = time.monotonic() + TIMEOUT_S
        while os.waitpid(child, os.WNOHANG) == (0, 0):
            if time.monotonic() > deadline:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                return {"error": f"no result within {TIMEOUT_S} s"}
            time.sleep(0.01)
        record = Path(folder) / "record.json"
        if record.exists():
            return dict(json.loads(record.read_text(encoding="utf-8")))
        return {"error": (Path(folder) / "log").read_text(encoding="utf-8")[-3000:]}


def _run(document: dict[str, Any], folder: Path) -> None:
    """In the child, which never returns."""
    log = (folder / "log").open("w", encoding="utf-8")
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
    try:
        from runner.spec import RunSpec
        from runner.train import Reporter, train

        spec = RunSpec(**document)
        assert spec.rank is not None
        os.environ.update(RANK=str(spec.rank), LOCAL_RANK="0", WORLD_SIZE=str(spec.gpus), DS_ACCELERATOR="cpu")
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
        with redirect_stdout(io.StringIO()):
            record = train(spec, Reporter(folder, spec.rank))
        temporary = folder / "record.tmp"
        temporary.write_text(json.dumps(record), encoding="utf-8")
        temporary.replace(folder / "record.json")
    except BaseException:
        import traceback

        traceback.print_exc()
    log.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
